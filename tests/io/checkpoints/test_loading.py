"""A checkpoint is loaded by the model's own `load_state_dict`, and written back under the names that it has."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import verifix
from tests.checkpoint_cases import ALPHA, samples
from verifix.cli.main import main
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.checkpoints.weight_file import leaves

FORMS = '''
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper


def dense():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.Linear(8, 3))


class Centred(nn.Module):
    """Subtracts an offset that lies in the extra state, in one of several forms."""

    def __init__(self, form="number"):
        super().__init__()
        self.body, self.form, self.offset = dense(), form, 0.0

    def get_extra_state(self):
        forms = {"number": self.offset, "nested": {"a": [{"offset": self.offset}, None]}}
        return forms.get(self.form, torch.full((1 + int(bool(self.offset)),), float(self.offset)))

    def set_extra_state(self, state):
        self.offset = state["a"][0]["offset"] if self.form == "nested" else float(torch.as_tensor(state).max())
        if self.form == "nested":
            state["a"].clear()

    def forward(self, x):
        return self.body(x - self.offset)


def extra():
    return Centred()


def extra_nested():
    return nn.Sequential(Centred("nested"), nn.Identity())


def extra_tensor():
    return Centred("tensor")


def lazy():
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.ReLU(), nn.LazyLinear(3))


def eager_conv():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def lazy_conv():
    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))


def wrapped():
    return nn.Sequential(nn.Flatten(), checkpoint_wrapper(nn.Linear(48, 8)), nn.ReLU(), nn.Linear(8, 3))


def wrapped_whole():
    return checkpoint_wrapper(dense())


def wrapped_twice():
    return nn.Sequential(checkpoint_wrapper(nn.Sequential(nn.Flatten(), checkpoint_wrapper(nn.Linear(48, 3)))))


def wrapped_tied():
    model = nn.Sequential(nn.Flatten(), checkpoint_wrapper(nn.Linear(48, 48)), nn.ReLU(), nn.Linear(48, 48))
    model[3].weight = model[1]._checkpoint_wrapped_module.weight
    return nn.Sequential(model, nn.Linear(48, 3))


class Renaming(nn.Module):
    """Puts a prefix before its keys when it is saved, and takes it away when it is loaded."""

    def __init__(self):
        super().__init__()
        self.body = dense()
        self.register_state_dict_post_hook(self._add)
        self.register_load_state_dict_pre_hook(self._drop)

    @staticmethod
    def _add(module, state, prefix, metadata):
        for key in [key for key in state if key.startswith(prefix)]:
            state[f"{prefix}saved-{key[len(prefix):]}"] = state.pop(key)

    @staticmethod
    def _drop(module, state, prefix, *rest):
        for key in [key for key in state if key.startswith(f"{prefix}saved-")]:
            state[prefix + key[len(prefix) + len("saved-"):]] = state.pop(key)

    def forward(self, x):
        return self.body(x)


def renaming():
    return nn.Sequential(Renaming())


class Old(nn.Module):
    """Loads the names that its layers had before, and drops an entry that is no tensor."""

    def __init__(self):
        super().__init__()
        self.body = dense()
        self.register_load_state_dict_pre_hook(self._rename)

    @staticmethod
    def _rename(module, state, prefix, *rest):
        state.pop(f"{prefix}about", None)
        for key in [key for key in state if key.startswith(f"{prefix}layers.")]:
            state[key.replace("layers.", "body.", 1)] = state.pop(key)

    def forward(self, x):
        return self.body(x)


class Override(nn.Module):
    """Renames in a `load_state_dict` of its own, which knows nothing of `assign`."""

    def __init__(self):
        super().__init__()
        self.body = dense()

    def load_state_dict(self, state_dict, strict=True):
        return super().load_state_dict({k.replace("layers.", "body."): v for k, v in state_dict.items()}, strict)

    def forward(self, x):
        return self.body(x)


class Lenient(nn.Module):
    """Is never strict."""

    def __init__(self):
        super().__init__()
        self.body = dense()

    def load_state_dict(self, state_dict, strict=True, assign=False):
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def forward(self, x):
        return self.body(x)


class Silent(Lenient):
    """Is never strict, and says nothing of it."""

    def load_state_dict(self, state_dict, strict=True, assign=False):
        super().load_state_dict(state_dict, strict, assign)


def weight_norm():
    return nn.Sequential(
        nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(48, 8)), nn.ReLU(), nn.Linear(8, 3)
    )


class Versioned(nn.Linear):
    """Up to version 1 the bias was kept with the other sign."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version", 1) < 2:
            state[f"{prefix}bias"] = -state[f"{prefix}bias"]
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def versioned():
    return nn.Sequential(nn.Flatten(), Versioned(48, 8), nn.ReLU(), Versioned(8, 3))


class Transposed(nn.Linear):
    """Keeps its weight transposed in files."""

    def _save_to_state_dict(self, state, prefix, keep_vars):
        super()._save_to_state_dict(state, prefix, keep_vars)
        state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()

    def _load_from_state_dict(self, state, prefix, *rest):
        state[f"{prefix}weight"] = state[f"{prefix}weight"].t().contiguous()
        super()._load_from_state_dict(state, prefix, *rest)


def transposed():
    return nn.Sequential(nn.Flatten(), Transposed(48, 48), nn.ReLU(), nn.Linear(48, 3))
'''
NAMES: dict[str, Any] = {}
exec(compile(FORMS, "forms.py", "exec"), NAMES)


@dataclass(frozen=True)
class Case:
    """A factory by name, the network that was saved, and what its file holds, made from its state dict."""

    factory: str
    model: Callable[[], nn.Module]
    content: Callable[[dict[str, Any]], Any] = lambda state: state
    plain: Callable[[Any], dict[str, Any]] = lambda content: content


def centred(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = NAMES[name]()
        inner = model if name != "extra_nested" else model[0]
        inner.offset = 100.0
        return model

    return build


def behind(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def without(prefix: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key.removeprefix(prefix): value for key, value in state.items()}


def older(start: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda state: {key.replace("body.", start, 1): value for key, value in state.items()}


def old_norm(state: dict[str, Any]) -> dict[str, Any]:
    names = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    return {next((key.replace(a, b) for a, b in names.items() if a in key), key): v for key, v in state.items()}


def inside(state: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("1.", "1._checkpoint_wrapped_module.", 1): value for key, value in state.items()}


def sharded_wrapped(state: dict[str, Any]) -> dict[str, Any]:
    return {f"_fsdp_wrapped_module.{k[:2]}_checkpoint_wrapped_module.{k[2:]}": v for k, v in state.items()}


def strip(state: dict[str, Any]) -> dict[str, Any]:
    for name in ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module."):
        state = {key.replace(name, ""): value for key, value in state.items()}
    return state


def nested_versions(state: Any) -> Any:
    new = type(state)((f"net.{key}", value) for key, value in state.items())
    new._metadata = {f"net.{key}": value for key, value in state._metadata.items()}
    return new


def flat_versions(state: Any) -> Any:
    new = type(state)((key.removeprefix("net."), value) for key, value in state.items())
    new._metadata = {key.removeprefix("net."): value for key, value in state._metadata.items()}
    return new


CASES = {
    "extra state": Case("extra", centred("extra")),
    "extra state, nested": Case("extra_nested", centred("extra_nested")),
    "extra state, a tensor of another shape": Case("extra_tensor", centred("extra_tensor")),
    "extra state behind a prefix": Case("extra", centred("extra"), behind("module."), without("module.")),
    "extra state under a key of one's own": Case(
        "extra", centred("extra"), lambda s: {"best": s}, lambda content: content["best"]
    ),
    "lazy linear": Case("lazy", NAMES["dense"]),
    "lazy convolution, BatchNorm and linear": Case("lazy_conv", NAMES["eager_conv"]),
    "lazy behind a prefix": Case("lazy", NAMES["dense"], behind("module."), without("module.")),
    "wrapper inside": Case("wrapped", NAMES["wrapped"]),
    "wrapper outside": Case("wrapped_whole", NAMES["wrapped_whole"]),
    "wrappers in one another": Case("wrapped_twice", NAMES["wrapped_twice"]),
    "wrapper around a tied weight": Case("wrapped_tied", NAMES["wrapped_tied"]),
    "wrapper behind a prefix": Case("wrapped", NAMES["wrapped"], behind("model."), without("model.")),
    "prefixes of wrappers in the file": Case("dense", NAMES["dense"], inside, strip),
    "prefixes of FSDP in the file": Case("dense", NAMES["dense"], sharded_wrapped, strip),
    "hooks that rename": Case("renaming", NAMES["renaming"]),
    "hook for old names": Case("Old", NAMES["Old"], older("layers.")),
    "hook that drops an entry": Case("Old", NAMES["Old"], lambda s: s | {"about": {"epoch": 3}}),
    "hook for old names, behind a prefix": Case(
        "Old", NAMES["Old"], lambda s: behind("net.")(older("layers.")(s)), without("net.")
    ),
    "method of the model's own": Case("Override", NAMES["Override"], older("layers.")),
    "method that is never strict, behind a prefix": Case("Lenient", NAMES["Lenient"], behind("net."), without("net.")),
    "method that says nothing, behind a prefix": Case("Silent", NAMES["Silent"], behind("net."), without("net.")),
    "weight norm of before": Case("weight_norm", NAMES["weight_norm"], old_norm),
    "weight norm of before, behind a prefix": Case(
        "weight_norm", NAMES["weight_norm"], lambda s: behind("model.")(old_norm(s)), without("model.")
    ),
    "versions of modules": Case("versioned", NAMES["versioned"]),
    "versions of modules behind a prefix": Case("versioned", NAMES["versioned"], nested_versions, flat_versions),
}


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("forms.py").write_text(FORMS)
    return tmp_path


def saved(case: Case) -> nn.Module:
    """Save a network with weights that tell the classes apart, and the samples that it is tried on."""
    torch.manual_seed(0)
    model = case.model().eval()
    x, y = samples()
    x = x + next((float(m.offset) for m in model.modules() if hasattr(m, "offset")), 0.0)
    np.savez("v.npz", x=x.numpy(), y=y.numpy())
    torch.save(case.content(model.state_dict()), "c.pt")
    return model


def held() -> tuple[torch.Tensor, torch.Tensor]:
    with np.load("v.npz") as file:
        return torch.from_numpy(file["x"]), torch.from_numpy(file["y"])


def correcting(factory: str, path: str = "c.pt", *flags: str) -> list[str]:
    given = ["--model", f"py:forms.py:{factory}", "--checkpoint", path, "--verified", "v.npz", "--out", "o.pt"]
    given += ["--verified-from", "unseen", "--no-check-inputs"]  # the networks are not trained
    return ["correct", *given, "--alpha", str(ALPHA), "--proof", "none", *flags]


@pytest.mark.parametrize("name", CASES)
def test_what_torch_loads_is_loaded_as_torch_does(name, here, capsys):
    case = CASES[name]
    model = saved(case)
    (x, y), fresh = held(), NAMES[case.factory]()
    read_checkpoint("c.pt").load_into(fresh)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(fresh.eval()(x), expected)
    assert main(["score", "c.pt", "--model", f"py:forms.py:{case.factory}", "--data", "v.npz", "--json"]) == 0
    accuracy = json.loads(capsys.readouterr().out)["accuracy"]
    assert accuracy == pytest.approx(100 * (expected.argmax(1) == y).float().mean().item())


@pytest.mark.parametrize("name", CASES)
def test_what_torch_loads_is_written_back_for_torch_to_load(name, here, capsys):
    case = CASES[name]
    model = saved(case)
    x, y = held()
    source = Path("c.pt").read_bytes()
    new = verifix.correct(model, (x, y), alpha=ALPHA, verified_from="unseen", progress=False, check_labels=False)
    assert main(correcting(case.factory, "c.pt", "--no-check-labels")) == 0, capsys.readouterr().err
    before, after = torch.load("c.pt"), torch.load("o.pt")
    was, now = dict(leaves(before)), dict(leaves(after))
    assert was.keys() == now.keys()
    for place, value in was.items():
        if "_extra_state" in place or not isinstance(value, torch.Tensor):
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(now[place])) if value is not None else True
    assert any(isinstance(v, torch.Tensor) and not torch.equal(v, now[p]) for p, v in was.items())
    loaded = NAMES[case.factory]()
    loaded.load_state_dict(case.plain(after), strict=True)
    new.apply_(model)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(x), model(x))
    capsys.readouterr()
    assert main(["undo", "o.pt", "--out", "back.pt"]) == 0
    assert Path("back.pt").read_bytes() == source


def line_of(capsys: Any) -> str:
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    return error


def test_weights_that_the_model_changes_as_it_loads_are_refused_before_the_work(here, capsys, monkeypatch):
    saved(Case("transposed", NAMES["transposed"]))
    assert main(["score", "c.pt", "--model", "py:forms.py:transposed", "--data", "v.npz", "--json"]) == 0
    capsys.readouterr()
    monkeypatch.setattr("verifix.cli.commands.correct.correct", lambda *_, **__: pytest.fail("computed"))
    assert main(correcting("transposed")) == 5
    line = line_of(capsys)
    assert "c.pt cannot hold new values for 1 parameters (1.weight)" in line
    assert "--exclude" in line
    assert not Path("o.pt").exists()


def test_the_others_are_written_where_such_weights_are_left_out(here, capsys):
    saved(Case("transposed", NAMES["transposed"]))
    assert main(correcting("transposed", "c.pt", "--exclude", "1.weight", "--no-check-labels")) == 0
    before, after = torch.load("c.pt"), torch.load("o.pt")
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert "3.weight" in changed
    assert "1.weight" not in changed


@pytest.mark.parametrize("state", [Fraction(100), {"offset": np.float64(100)}, io.BytesIO(b"100")])
def test_extra_state_that_could_run_code_is_refused_in_a_line(state, here, capsys):
    model = saved(CASES["extra state"])
    torch.save({**model.state_dict(), "_extra_state": state}, "c.pt")
    assert main(correcting("extra")) == 5
    line = line_of(capsys)
    assert "weights_only=True" in line
    assert "extra state" in line


def test_extra_state_that_the_file_lacks_is_missing(here, capsys):
    model = saved(CASES["extra state"])
    save_file({key: value for key, value in model.state_dict().items() if key != "_extra_state"}, "c.safetensors")
    assert main(["score", "c.safetensors", "--model", "py:forms.py:extra", "--data", "v.npz"]) == 5
    assert "1 missing (_extra_state); 0 unexpected; save the state dict with torch.save" in line_of(capsys)


def test_extra_state_that_the_model_refuses_is_a_line(here, capsys):
    model = saved(CASES["extra state"])
    torch.save({**model.state_dict(), "_extra_state": "much\nmore"}, "c.pt")
    assert main(["score", "c.pt", "--model", "py:forms.py:extra", "--data", "v.npz"]) == 5
    assert "c.pt does not load into the model (" in line_of(capsys)


@pytest.mark.parametrize("name", ["Lenient", "Silent"])
def test_a_method_that_is_never_strict_hides_no_missing_weight(name, here, capsys):
    model = saved(Case(name, NAMES[name]))
    torch.save({key: value for key, value in model.state_dict().items() if key != "body.3.bias"}, "c.pt")
    assert main(["score", "c.pt", "--model", f"py:forms.py:{name}", "--data", "v.npz"]) == 5
    assert "1 missing (body.3.bias); 0 unexpected" in line_of(capsys)
