"""Odd models, loaders and files, each of which once gave a wrong answer without a word."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, SubsetRandomSampler, TensorDataset

import verifix
from tests.cases import small_data, small_net
from tests.test_algorithm import verified
from verifix import CheckpointError, DataError, UsageError
from verifix.cli.demo import digits
from verifix.cli.main import main
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.options import DataOptions
from verifix.model.folds import split_folds
from verifix.model.samples import read_samples
from verifix.storage.tensors import read_safetensors


def same(a: verifix.Correction, b: verifix.Correction) -> bool:
    return (
        all(torch.equal(a.corrected[k], b.corrected[k]) for k in b.corrected)
        and a.corrected.keys() == b.corrected.keys()
    )


def test_a_loader_is_read_by_what_its_sampler_draws_and_its_generator_stays():
    (x, y), model = small_data(), small_net().eval()
    data, chosen = TensorDataset(x, y), [5, 3, 70, 20, 11, 42]
    expected = verifix.correct(model, (x[sorted(chosen)], y[sorted(chosen)]), alpha=9, progress=False)
    generator = torch.Generator().manual_seed(4)
    state = generator.get_state()
    for loader in (
        DataLoader(data, sampler=SubsetRandomSampler(chosen, generator), batch_size=4),
        DataLoader(data, batch_sampler=BatchSampler(SubsetRandomSampler(chosen, generator), 4, False)),
    ):
        found = verifix.correct(model, loader, alpha=9, batch_size=64, progress=False)
        assert found.provenance["samples"] == 6
        assert same(found, expected)
        assert torch.equal(generator.get_state(), state)


def test_a_surrounding_autocast_does_not_serve_old_weights():
    data = digits.load(0)
    model = digits.trained(data, 0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        curve = verifix.correct(model, verified(data), recipe="verifix", progress=False).curve
    assert len({point.loss for point in curve}) == len(curve) > 2


def test_weights_tied_by_memory_alone_stay_tied():
    (x, y), model = small_data(d_in=6, classes=6), nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    model[2].weight = nn.Parameter(model[0].weight.data)
    correction = verifix.correct(model, (x, y), alpha=100, progress=False)
    assert set(correction.corrected) == {"0.weight"}
    assert torch.equal(correction.model[0].weight, correction.model[2].weight)
    correction.apply_(model)
    with torch.no_grad():
        assert torch.equal(model(x), correction.model(x))
    correction.undo_(model)


def test_weights_corrected_by_apply_are_refused_too():
    (x, y), model = small_data(), small_net().eval()
    correction = verifix.correct(model, (x, y), alpha=9, progress=False)
    correction.apply_(model, blend=0.5)
    with pytest.raises(CheckpointError, match="corrected already"):
        verifix.correct(model, (x, y), alpha=9, progress=False)


def test_a_weight_that_is_written_to_while_running_is_skipped_and_the_users_stays():
    class Renormed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, x):
            self.a.weight.data.renorm_(2, 0, 0.1)
            return self.b(self.a(x))

    (x, y), model = small_data(), Renormed().eval()
    before = model.a.weight.detach().clone()
    survey = verifix.inspect(model, x)
    assert {a.parameter: (a.status, a.reason) for a in survey.accounts} == {
        "a.weight": ("skipped", "also used by Tensor.renorm_"),
        "b.weight": ("corrected", ""),
    }
    verifix.collect_moments(model, (x, y), progress=False)
    verifix.correct(model, (x, y), alpha=9, progress=False)
    assert torch.equal(model.a.weight, before)


def test_a_forward_that_is_a_closure_over_the_original_is_refused():
    (x, y), model = small_data(), small_net().train()
    old = model[1].forward
    model[1].forward = lambda x: old(x)  # noqa: PLW0108 - a closure is the point
    state = copy.deepcopy(model[1].state_dict())
    with pytest.raises(UsageError, match=r"still uses '1\.\w+' of the original"):
        verifix.correct(model, (x, y), alpha=9, progress=False)
    assert all(torch.equal(state[k], v) for k, v in model[1].state_dict().items())
    assert model[1].training


def test_buffers_that_come_and_grow_while_running_are_taken_back():
    from verifix.model.borrow import borrowed

    class Caches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)
            self.register_buffer("cache", None)
            self.register_buffer("wide", torch.zeros(1).expand(3))
            self.register_buffer("grows", torch.zeros(2))

        def forward(self, x):
            self.cache = x
            self.grows.data = torch.zeros(5)
            self.register_buffer("late", x)
            return self.layer(x)

    model, (x, y) = Caches().eval(), small_data()
    with borrowed(model):
        model(x)
    assert set(model.state_dict()) == {"layer.weight", "layer.bias", "wide", "grows"}
    assert model.grows.tolist() == [0, 0]
    assert verifix.correct(model, (x, y), alpha=9, progress=False).alpha == 9


def test_a_correction_made_in_inference_mode_can_be_trained_on():
    (x, y), model = small_data(), small_net().eval()
    with torch.inference_mode():
        correction = verifix.correct(model, (x, y), alpha=9, progress=False)
    correction.model(x).sum().backward()


def test_more_classes_than_samples_per_fold():
    x, y = torch.randn(60, 8), torch.arange(60) % 30
    folds = split_folds(read_samples((x, y)), 5, 0)
    assert sorted(np.concatenate(folds)) == list(range(60))
    assert [len(f) for f in folds] == [12] * 5
    assert verifix.correct(small_net(classes=30).eval(), (x, y), recipe="verifix", progress=False).curve


def test_a_layer_that_only_one_fold_uses_stays_as_it_is_for_the_others():
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.always, self.rare = nn.Linear(8, 3), nn.Linear(8, 3)

        def forward(self, x):
            return torch.stack([self.rare(r) if r[0] > 99 else self.always(r) for r in x])

    x, y = small_data()
    x[7, 0] = 100
    correction = verifix.correct(Sometimes().eval(), (x, y), recipe="verifix", progress=False)
    assert {r.parameter for r in correction.layers} == {"always.weight", "rare.weight"}
    assert correction.curve


def test_models_that_squeeze_and_models_that_count_their_calls():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))

        def forward(self, x):
            self.calls += 1
            return self.net(x).squeeze()

    model, (x, y) = Counts().eval(), small_data(81)
    saved = verifix.collect_moments(model, (x[:20], y[:20]), progress=False)
    digests = set()
    for size in (1, 7, 10):
        found = verifix.correct(model, (x[20:], y[20:]), alpha=9, moments=saved, batch_size=size, progress=False)
        digests.add(found.provenance["model_sha256"])
        assert found.provenance["earlier_moments"]
    assert len(digests) == 1
    assert int(model.calls) == 0


def test_the_seed_makes_a_random_forward_repeatable():
    class Drops(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x):
            return self.net(F.dropout(x, 0.5, training=True))

    model, (x, y) = Drops().eval(), small_data()
    torch.manual_seed(1)
    a = verifix.correct(model, (x, y), alpha=9, progress=False)
    torch.manual_seed(2)
    b = verifix.correct(model, (x, y), alpha=9, progress=False)
    assert same(a, b)
    assert not same(a, verifix.correct(model, (x, y), alpha=9, seed=5, progress=False))


ODD_SAMPLES = {
    "strings": lambda x, y: (x, [str(v) for v in y]),
    "ragged": lambda x, y: (x, [[1], [1, 2]]),
    "dict": lambda x, y: {"x": x, "y": y},
    "collate drops": lambda x, y: DataLoader(
        TensorDataset(x, y),
        batch_size=8,
        collate_fn=lambda rows: (torch.stack([r[0] for r in rows[1:]]), [int(r[1]) for r in rows[1:]]),
    ),
    "sizes": lambda x, y: [(x[i, : 4 + i % 2], 0) for i in range(80)],
}


@pytest.mark.parametrize("name", ODD_SAMPLES)
def test_odd_samples_are_refused_in_one_line(name):
    with pytest.raises(verifix.VerifixError) as caught:
        verifix.correct(small_net(), ODD_SAMPLES[name](*small_data()), progress=False)
    assert "\n" not in str(caught.value)


def test_scalar_inputs_and_lazy_and_repeated_stages():
    x, y = torch.randn(60), torch.arange(60) % 2
    lift = nn.Sequential(nn.Unflatten(0, (-1, 1)), nn.Linear(1, 2)).eval()
    assert verifix.correct(lift, (x, y), alpha=9, progress=False).alpha == 9
    with pytest.raises(UsageError, match="is not initialised"):
        verifix.correct(nn.LazyLinear(3), small_data(), progress=False)
    with pytest.raises(UsageError, match="each once"):
        verifix.correct(small_net(), small_data(), alpha=9, recipe="project,project", progress=False)
    with pytest.raises(UsageError, match="must be a list of patterns"):
        verifix.collect_moments(small_net(), small_data(), include="linear", progress=False)
    with pytest.raises(UsageError, match="batch_size is 0"):
        verifix.collect_moments(small_net(), small_data(), batch_size=0, progress=False)


TIED = """
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(self.a(x).relu()).relu())

def build():
    print("hello from the factory")
    return Tied()
"""


@pytest.fixture
def tied(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(TIED)
    namespace: dict = {}
    exec(TIED, namespace)
    model = namespace["Tied"]().eval()
    x, y = small_data()
    np.savez("v.npz", x=x.numpy(), y=y.numpy())
    return model


def command(checkpoint: str, out: str, *more: str) -> int:
    base = [
        "correct",
        "--model",
        "py:net:build",
        "--checkpoint",
        checkpoint,
        "--verified",
        "v.npz",
        "--verified-from",
        "unseen",
        "--proof",
        "none",
    ]
    return main([*base, "--out", out, "--alpha", "30", "--no-progress", *more])


@pytest.mark.parametrize("form", ["every name", "first name", "last name", "half"])
def test_every_name_of_a_tied_weight_is_corrected_in_the_checkpoint(tied, form, capsys):
    state = {k: v.clone() for k, v in tied.state_dict().items()}
    if form.endswith("name") and form != "every name":
        del state["a.weight" if form == "last name" else "b.weight"]
    if form == "half":
        state = {k: v.half() for k, v in state.items()}
    save_file(state, "c.safetensors")
    assert command("c.safetensors", "f.safetensors", "--json") == 0
    out, err = capsys.readouterr()
    assert "hello" in err
    assert out.startswith("{")
    fixed = load_file("f.safetensors")
    assert fixed.keys() == state.keys()
    assert {v.dtype for v in fixed.values()} == {v.dtype for v in state.values()}
    changed = [k for k in state if not torch.equal(fixed[k], state[k])]
    assert changed == [k for k in state if k in ("a.weight", "b.weight", "head.weight")]
    correction = verifix.Correction.load("f.correction.safetensors")
    read_checkpoint("f.safetensors").load_into(tied)
    assert torch.equal(tied.a.weight, correction.corrected["a.weight"])
    correction.undo_(tied)
    assert torch.equal(tied.head.weight, state["head.weight"].float())
    assert command("f.safetensors", "g.safetensors") == 5


def test_tied_copies_that_differ_are_refused_and_prefixed_keys_are_found(tied, capsys):
    state = {k: v.clone() for k, v in tied.state_dict().items()}
    save_file(state | {"b.weight": state["b.weight"] + 1}, "c.safetensors")
    assert command("c.safetensors", "f.safetensors") == 5
    assert "has different values for 'a.weight' and 'b.weight'" in capsys.readouterr().err
    save_file({f"module.{k}": v for k, v in state.items()}, "d.safetensors")
    assert command("d.safetensors", "f.safetensors") == 0
    assert load_file("f.safetensors").keys() == {f"module.{k}" for k in state}


def test_no_input_is_ever_overwritten_and_no_output_twice(tied, capsys):
    save_file({k: v.clone() for k, v in tied.state_dict().items()}, "c.correction.safetensors")
    files = {name: Path(name).read_bytes() for name in ("c.correction.safetensors", "v.npz")}
    for out, more in {
        "c.safetensors": (),
        "c.correction.safetensors": (),
        "f.safetensors": ("--save-moments", "v.npz"),
        "g.safetensors": ("--save-moments", "c.correction.safetensors"),
        "h.safetensors": ("--save-moments", "h.safetensors"),
    }.items():
        assert command("c.correction.safetensors", out, "--force", *more) == 2, out
        err = capsys.readouterr().err
        assert "is an input" in err or "is the name of two outputs" in err
    assert {name: Path(name).read_bytes() for name in files} == files


def test_a_state_dict_with_other_things_beside_its_tensors_keeps_them(tied):
    torch.save({**tied.state_dict(), "epoch": 7}, "c.pt")
    assert command("c.pt", "f.pt") == 0
    assert torch.load("f.pt", weights_only=True)["epoch"] == 7


def test_what_a_model_raises_is_one_line_everywhere(tied, capsys):
    save_file({k: v.clone() for k, v in tied.state_dict().items()}, "c.safetensors")
    _, y = small_data()
    np.savez("wide.npz", x=np.zeros((60, 9), np.float32), y=y[:60].numpy())
    score = ["score", "c.safetensors", "--model", "py:net:build", "--data", "wide.npz"]
    inspect = ["inspect", "--model", "py:net:build", "--input-shape", "9"]
    for run in (
        lambda: main(score),
        lambda: main(inspect),
        lambda: command("c.safetensors", "f.safetensors", "--test", "wide.npz"),
    ):
        assert run() == 5
        err = capsys.readouterr().err.splitlines()
        assert "the model cannot run on inputs of shape" in err[-1]
        assert not any("Traceback" in line for line in err)


def test_deep_images_are_scaled_and_deeper_ones_refused(tmp_path):
    (tmp_path / "0").mkdir()
    ramp = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "0" / "a.png")
    x, _ = open_data(tmp_path, DataOptions(mean="0", std="1")).dataset[0]
    np.testing.assert_allclose(x[0].numpy(), ramp / 65535, atol=1 / 255)
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "0" / "b.tif")
    with pytest.raises(DataError, match=r"b\.tif has 32 bits a channel"):
        _ = open_data(tmp_path, DataOptions()).dataset[1]


def test_arrays_become_inputs_by_their_layout(tmp_path):
    last = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)

    def read(x, **options):
        np.savez(tmp_path / "a.npz", x=x, y=np.zeros(4, np.int16))
        return open_data(tmp_path / "a.npz", DataOptions(**options)).dataset[0][0]

    torch.testing.assert_close(read(last), torch.from_numpy(last[0]).permute(2, 0, 1) / 255)
    assert torch.equal(read(last.transpose(0, 3, 1, 2)), read(last))
    assert read(last[..., 0]).shape == (1, 6, 5)
    assert read(last.astype(">f8")).dtype == torch.float32
    assert read(last.astype(np.float16)).dtype == torch.float32
    with pytest.raises(DataError, match="either last or first"):
        read(last[:, :, :, [0, 1]])
    with pytest.raises(UsageError, match="--size is for image files"):
        read(last, size=3)
    with pytest.raises(UsageError, match="divide by 255"):
        DataOptions(mean="125,120,110", std="60,60,60")


def test_metadata_has_one_order_in_every_file(tmp_path):
    from verifix.storage.tensors import write_safetensors

    contents = set()
    for i in range(8):
        write_safetensors(tmp_path / f"{i}", {"a": torch.ones(2)}, {k: k for k in ("one", "two", "three", "four")})
        contents.add((tmp_path / f"{i}").read_bytes())
    assert len(contents) == 1
    tensors, metadata = read_safetensors(tmp_path / "0")
    assert metadata == {k: k for k in ("one", "two", "three", "four")}
    assert torch.equal(tensors["a"], torch.ones(2))
