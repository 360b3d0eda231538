"""NaN and Inf wherever they can get in: one line that names the place, nothing written, and the model as it was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import verifix
from tests import hostile, tiny
from tests.children import Case, run_cases
from verifix import DataError
from verifix.cli.main import main
from verifix.io.data.open import open_data
from verifix.io.options import DataOptions
from verifix.model.tensors import tensor_bytes

VALUES = {"NaN": math.nan, "Inf": math.inf, "-Inf": -math.inf}


class Transformer(nn.Module):
    """A layer of attention over five tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 8)
        self.register_buffer("places", torch.randn(5, 8))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.block(self.embed(x) + self.places)).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def cnn() -> nn.Module:
    head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), head)


NETS = {"mlp": (mlp, (8,)), "cnn": (cnn, (3, 8, 8)), "transformer": (Transformer, (5, 6))}


def made(name: str, n: int = 12) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    build, shape = NETS[name]
    torch.manual_seed(1)
    return build().eval(), torch.randn(n, *shape), torch.arange(n) % 3


class Poison:
    """A hook that puts a value into what a module returns, for the first sample of batches that are large enough."""

    def __init__(self, value: float, least: int = 1) -> None:
        self.value, self.least, self.calls = value, least, 0

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        first = (output[0] if isinstance(output, tuple) else output).clone()
        self.calls += 1
        if len(first) >= self.least:
            first[(0,) * first.ndim] = self.value
        return (first, *output[1:]) if isinstance(output, tuple) else first


def layers_of(name: str) -> list[str]:
    """The modules that are called when the model runs."""
    model, x, _ = made(name)
    counts = {layer: Poison(0.0, 99) for layer, _ in model.named_modules() if layer}
    for layer, count in counts.items():
        model.get_submodule(layer).register_forward_hook(count)
    torch.backends.mha.set_fastpath_enabled(False)
    model(x)
    torch.backends.mha.set_fastpath_enabled(True)
    return [layer for layer, count in counts.items() if count.calls]


LAYERS = [(net, layer) for net in NETS for layer in layers_of(net)]
TENSORS = [(net, name) for net in NETS for name, x in made(net)[0].state_dict().items() if x.is_floating_point()]


def state_of(model: nn.Module) -> dict[str, bytes]:
    return {name: tensor_bytes(x) for name, x in model.state_dict().items()}


def refused(model: nn.Module, *arguments: Any, **settings: Any) -> str:
    """The one line of the error; the model is as it was."""
    before, flags = state_of(model), [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) for module in model.modules()]
    with pytest.raises(DataError) as caught:
        verifix.correct(model, *arguments, progress=False, **settings)
    assert state_of(model) == before
    assert [module.training for module in model.modules()] == flags
    assert [len(module._forward_hooks) for module in model.modules()] == hooks
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_each_network_is_accepted_as_it_is():
    for name in NETS:
        model, x, y = made(name)
        assert verifix.correct(model, (x, y), alpha=10, progress=False).changed


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("net", "layer"), LAYERS)
def test_a_layer_whose_output_is_not_finite_is_named(net, layer, value):
    model, x, y = made(net)
    model.get_submodule(layer).register_forward_hook(Poison(VALUES[value]))
    line = _refused_or_hidden(model, x, y) if value == "-Inf" else refused(model, (x, y), alpha=10)
    if line is not None:
        assert f"the model's logits contain NaN or Inf for sample 0, first in the output of {layer!r} (" in line


def _refused_or_hidden(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> str | None:
    """An activation function may turn -Inf into 0: then the logits are finite, and there is nothing to say."""
    with torch.no_grad():
        if torch.isfinite(model(x)).all():
            return None
    return refused(model, (x, y), alpha=10)


@pytest.mark.parametrize("value", ["NaN", "Inf"])
@pytest.mark.parametrize(("net", "layer"), LAYERS)
def test_it_is_found_too_where_it_does_not_show_at_once(net, layer, value):
    """Only batches of three samples or more have it here, and the first look at a model takes two."""
    model, x, y = made(net)
    model.get_submodule(layer).register_forward_hook(Poison(VALUES[value], 3))
    line = refused(model, (x, y), alpha=10)
    assert "the input of layer '" in line or "the model's logits contain NaN or Inf for sample 0" in line


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize(("net", "name"), TENSORS)
def test_a_weight_or_a_buffer_that_is_not_finite_is_named(net, name, value):
    model, x, y = made(net)
    model.state_dict()[name].view(-1)[-1] = VALUES[value]
    if name == "places" and value != "NaN":  # a buffer may be infinite on purpose; then its effect is named
        assert "for sample 0, first in the output of 'block" in refused(model, (x, y), alpha=10)
        return
    assert f"{name!r} of the model contains NaN or Inf; load an intact checkpoint" in refused(model, (x, y), alpha=10)


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("net", NETS)
def test_an_input_that_is_not_finite_is_named(net, value):
    model, x, y = made(net)
    x[7].view(-1)[3] = VALUES[value]
    loader = DataLoader(TensorDataset(x, y), batch_size=5)
    for samples in ((x, y), loader, ({"input": x, "x": x}, y), list(zip(x, y, strict=True))):
        assert "the input of sample 7 contains NaN or Inf; every input must be finite" in refused(
            model, samples, alpha=9
        )


@pytest.mark.parametrize("value", VALUES)
def test_a_label_that_is_not_finite_is_named(value):
    model, x, y = made("mlp")
    labels = y.float()
    labels[7] = VALUES[value]
    said = str(VALUES[value])
    assert f"number 7 of them is {said}; they must be class indices" in refused(model, (x, labels), alpha=9)
    for samples in (DataLoader(TensorDataset(x, labels)), list(zip(x, labels.tolist(), strict=True))):
        line = refused(model, samples, alpha=9)
        assert line.startswith("sample 7: labels are torch.float")
    mixed = [(row, math.nan if i == 7 else int(label)) for i, (row, label) in enumerate(zip(x, y, strict=True))]
    assert "sample 7: labels are torch.float64, and number 0 of them is nan" in refused(model, mixed, alpha=9)


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "Infinity", "1e999", "", " "])
@pytest.mark.parametrize("classes", [None, "red,green,blue"])
def test_a_table_with_a_label_that_is_no_class_names_the_line(tmp_path, text, classes):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(tiny.png("red", i))
    first, last = ("red", "blue") if classes else ("0", "2")
    (tmp_path / "m.csv").write_text(f'file_name,label\n0.png,{first}\n1.png,"{text}"\n2.png,{last}\n')
    with pytest.raises(DataError, match=r"^line 3 of .*m\.csv has the label '.*(orrect|class indices)"):
        open_data(tmp_path / "m.csv", DataOptions(classes=classes))


@pytest.mark.parametrize("value", VALUES)
def test_numbers_that_are_not_finite_in_other_files_name_the_row(tmp_path, value):
    number = VALUES[value]
    (tmp_path / "0.png").write_bytes(tiny.png("red"))
    lines = [json.dumps({"file_name": "0.png", "label": label}) for label in (0, number)]
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"^line 2 of .*m\.jsonl has the label -?(nan|inf); labels must be"):
        open_data(tmp_path / "m.jsonl", DataOptions())
    pq.write_table(
        pa.table({"text": ["a", "b"], "file_name": ["0.png"] * 2, "label": [0.0, number]}), tmp_path / "m.parquet"
    )
    with pytest.raises(DataError, match=r"^row 1 of .*m\.parquet has the label -?(nan|inf); labels must be class"):
        open_data(tmp_path / "m.parquet", DataOptions())
    x, y = np.zeros((4, 3, 8, 8), np.float32), np.arange(4.0)
    y[2] = number
    np.savez(tmp_path / "m.npz", x=x, y=y)
    with pytest.raises(DataError, match=r"m\.npz has labels of float64, and label 2 is -?(nan|inf); they must be"):
        open_data(tmp_path / "m.npz", DataOptions())
    x[3, 0, 0, 0] = number
    np.savez(tmp_path / "m.npz", x=x, y=np.arange(4))
    with pytest.raises(DataError, match=r"m\.npz: the input of sample 3 contains NaN or Inf"):
        open_data(tmp_path / "m.npz", DataOptions())


POISONED = (
    hostile.NET
    + """
class Poison:
    def __call__(self, module, inputs, output):
        output = output.clone()
        output.view(-1)[0] = float("{value}")
        return output

def poisoned():
    model = build()
    model[{layer}].register_forward_hook(Poison())
    return model
"""
)


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(hostile.NET)
    save_file(dict(hostile.net().state_dict()), "net.safetensors")
    np.savez("v.npz", **hostile.samples())
    return tmp_path


def words(**changes: str) -> list[str]:
    given = {"--model": "py:net.py:build", "--checkpoint": "net.safetensors", "--verified": "v.npz"} | changes
    fixed = [
        "--verified-from",
        "unseen",
        "--alpha",
        "10",
        "--proof",
        "none",
        "--out",
        "fixed.safetensors",
        "--no-progress",
    ]
    return ["correct", *[word for pair in given.items() for word in pair], *fixed]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("name", ["0.weight", "0.bias", "4.weight", "4.bias"])
def test_every_command_names_the_weight(world, capsys, name, value):
    state = {key: x.clone() for key, x in hostile.net().state_dict().items()}
    state[name].view(-1)[0] = VALUES[value]
    save_file(state, "broken.safetensors")
    before = sorted(world.iterdir())
    score = ["score", "broken.safetensors", "--model", "py:net.py:build", "--data", "v.npz", "--no-progress"]
    inspect = ["inspect", "--model", "py:net.py:build", "--checkpoint", "broken.safetensors", "--data", "v.npz"]
    for argv in (words(**{"--checkpoint": "broken.safetensors", "--test": "v.npz"}), score, inspect):
        capsys.readouterr()
        assert main(argv) == 5
        out, err = capsys.readouterr()
        assert out == ""
        assert err == f"verifix: error: {name!r} of the model contains NaN or Inf; load an intact checkpoint\n"
        assert sorted(world.iterdir()) == before


def test_the_real_command_names_the_layer_the_sample_and_the_file(world):
    cases, expected = [], {}
    for layer, kind in enumerate(("Conv2d", "ReLU", "AdaptiveAvgPool2d", "Flatten", "Linear")):
        for value in ("nan", "inf", "-inf"):
            if (layer, value) == (0, "-inf"):
                continue  # the activation function makes it 0
            Path(f"net{layer}{value}.py").write_text(POISONED.format(layer=layer, value=value))
            name = f"{layer} {value}"
            cases.append(Case(name, str(world), words(**{"--model": f"py:net{layer}{value}.py:poisoned"})))
            expected[name] = f"for sample 0, first in the output of '{layer}' ({kind})"
    x = hostile.samples()
    for value in VALUES:
        broken = {key: array.astype(np.float32) for key, array in x.items()}
        broken["x"][5].flat[0] = VALUES[value]
        np.savez(f"x{value}.npz", x=broken["x"], y=x["y"])
        for flag in ("--verified", "--test"):
            cases.append(Case(f"{flag} {value}", str(world), words(**{flag: f"x{value}.npz"})))
            expected[f"{flag} {value}"] = f"x{value}.npz: the input of sample 5 contains NaN or Inf"
    before = sorted(path for path in world.iterdir() if path.suffix != ".pyc" and path.name != "__pycache__")
    for name, outcome in run_cases(cases).items():
        assert outcome.code == 5, (name, outcome)
        assert expected[name] in outcome.err, (name, outcome)
        assert outcome.err.count("\n") == 1
        assert outcome.out == ""
    after = sorted(path for path in world.iterdir() if path.suffix != ".pyc" and path.name != "__pycache__")
    assert after == before
