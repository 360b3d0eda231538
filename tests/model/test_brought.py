"""Models and inputs as people bring them: reentrant checkpoints, inference mode, frames, streams, hidden columns."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import CPU, memorised
from verifix import DataError, UsageError
from verifix.cli.main import main
from verifix.model.borrow import borrowed
from verifix.model.folds import split_folds
from verifix.model.gradients import gradients
from verifix.model.samples import read_samples

pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # torch's, of checkpoints

QUICK = {"progress": False, "check_labels": False}


class Checkpointed(nn.Module):
    """A network whose first layers are recomputed for the backward pass."""

    def __init__(self, net: nn.Sequential, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = net, reentrant

    def forward(self, x):
        return self.net[3:](checkpoint(self.net[:3], x, use_reentrant=self.reentrant))


class WithUnused(nn.Module):
    """A network with a layer that it never calls, and one whose result it throws away."""

    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net, self.unused, self.ignored = net, nn.Linear(3, 3), nn.Linear(8, 2)

    def forward(self, x):
        self.ignored(x)
        return self.net(x)


def slopes(model: nn.Module, x, y, names=None) -> dict[str, torch.Tensor]:
    names = names or [name for name, _ in model.named_parameters()]
    with borrowed(model):
        return dict(gradients(model, read_samples((x, y)), range(len(y)), names, batch_size=32, device=CPU))


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_layers_get_the_gradient_of_the_plain_network(reentrant):
    x, y = small_data(60)
    net = memorised(small_net(), x, y)
    plain, found = slopes(net, x, y), slopes(Checkpointed(net, reentrant).eval(), x, y)
    for name, value in plain.items():
        assert value.any(), name
        torch.testing.assert_close(found[f"net.{name}"], value)
    assert all(parameter.grad is None for parameter in net.parameters())


def test_fine_tuning_changes_checkpointed_layers_as_it_does_plain_ones():
    x, y = small_data(80)
    net = memorised(small_net(), x, (y + (torch.arange(80) % 3 == 0)) % 3)
    twin = small_net()
    twin.load_state_dict(net.state_dict())
    settings = QUICK | {"recipe": "finetune"}
    plain = verifix.correct(twin.eval(), (x, y), **settings)
    found = verifix.correct(Checkpointed(net, True).eval(), (x, y), **settings)
    assert plain.changed
    for name, value in plain.corrected.items():
        torch.testing.assert_close(found.corrected[f"net.{name}"], value)


def test_layers_without_a_part_in_the_logits_have_gradient_0_and_are_tried_once(monkeypatch):
    x, y = small_data(60)
    model, runs = WithUnused(memorised(small_net(), x, y)).eval(), []
    model.register_forward_hook(lambda *_: runs.append(1))
    first, again = slopes(model, x, y), slopes(model, x, y)
    assert not first["unused.weight"].any()
    assert not first["ignored.weight"].any()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert len(runs) == 2 + 1 + 2  # two batches, one of them tried again, and two batches


def test_a_model_that_writes_into_its_inputs_can_be_checkpointed():
    class Writing(Checkpointed):
        def forward(self, x):
            return super().forward(x.mul_(2.0))

    x, y = small_data(60)
    net = memorised(small_net(), x, y)
    found, plain = slopes(Writing(net, True).eval(), x.clone(), y), slopes(net, 2 * x, y)
    for name, value in plain.items():
        torch.testing.assert_close(found[f"net.{name}"], value)


@pytest.mark.parametrize("recipe", ["verifix", "auto"])
def test_a_model_built_in_inference_mode_is_corrected_as_any_other(recipe):
    x, y = small_data(80)
    net = memorised(small_net(), x, (y + (torch.arange(80) % 3 == 0)) % 3)
    with torch.inference_mode():
        model = small_net()
        model.load_state_dict(net.state_dict())
    settings = QUICK | {"recipe": recipe} | ({"alpha": 30.0} if recipe == "verifix" else {})
    plain, found = verifix.correct(net, (x, y), **settings), verifix.correct(model.eval(), (x, y), **settings)
    assert plain.changed
    assert all(torch.equal(found.corrected[name], value) for name, value in plain.corrected.items())
    assert not any(p.is_inference() for p in found.model.parameters())
    assert all(p.is_inference() for p in model.parameters())
    found.apply_(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in found.corrected.items())
    found.undo_(model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in net.state_dict().items())


def test_inputs_made_in_inference_mode_are_read_as_any_others():
    with torch.inference_mode():
        x, y = small_data(80)
    net = memorised(small_net(), x.clone(), y.clone())
    assert verifix.correct(net, (x, y), alpha=30.0, **QUICK).changed


@pytest.mark.parametrize(
    "value", [torch.tensor(300), torch.arange(4), torch.arange(16).view(4, 4), torch.ones(4, 4, dtype=torch.bool)]
)
def test_an_integer_parameter_that_multiplies_nothing_is_no_obstacle(value):
    x, y = small_data(60)
    net = memorised(small_net(), x, y)
    expected = verifix.correct(net, (x, y), alpha=30.0, **QUICK)
    net.register_parameter("steps", nn.Parameter(value, requires_grad=False))
    for recipe in ("verifix", "project,finetune"):
        found = verifix.correct(net, (x, y), alpha=30.0, recipe=recipe, **QUICK)
        assert torch.equal(found.model.steps, value)
    found = verifix.correct(net, (x, y), alpha=30.0, **QUICK)
    assert all(torch.equal(found.corrected[name], value) for name, value in expected.corrected.items())


def test_a_matrix_of_bytes_is_refused_with_both_remedies():
    net, (x, y) = small_net().eval(), small_data(60)
    net.register_parameter("packed", nn.Parameter(torch.ones(4, 4, dtype=torch.uint8), requires_grad=False))
    with pytest.raises(UsageError, match=r"quantised weight 'packed' \(torch.uint8\); .*register it as a buffer"):
        verifix.correct(net, (x, y), alpha=30.0, **QUICK)


class Named(nn.Module):
    """A network that takes its input by name, and others that it does not use."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, input):  # noqa: A002
        return self.net(input)


class TakesAll(Named):
    def forward(self, input, **_):  # noqa: A002
        return self.net(input)


def hidden(x, y, extra) -> list[dict]:
    """Samples each of which is there twice, the second time with another index, path or note beside it."""
    return [{"input": x[i % len(x)], "labels": int(y[i % len(x)]), **extra(i)} for i in range(2 * len(x))]


EXTRAS = {
    "an index": lambda i: {"idx": i},
    "a path": lambda i: {"path": f"images/{i}.png"},
    "both": lambda i: {"idx": torch.tensor(i), "meta": {"path": f"{i}.png", "size": [i, i]}},
}


@pytest.mark.parametrize("extra", EXTRAS.values(), ids=EXTRAS)
def test_copies_are_seen_whatever_else_stands_beside_them(extra):
    x, y = small_data(40)
    net = Named(memorised(small_net(), x, y)).eval()
    correction = verifix.correct(net, hidden(x, y, extra), alpha=30.0, progress=False)
    assert "40 of the 80 samples are copies of others; copies share a fold." in correction.notes
    contradicting = [*hidden(x, y, extra)[:-1], {**hidden(x, y, extra)[-1], "labels": int(y[-1] + 1) % 3}]
    with pytest.raises(DataError, match="sample 39 and sample 79 are the same input but have the labels"):
        verifix.correct(net, contradicting, alpha=30.0, progress=False)


def test_a_test_of_copies_knows_what_a_model_of_any_names_is_given():
    x, y = small_data(40)
    net = TakesAll(memorised(small_net(), x, y)).eval()
    by_path = verifix.correct(net, hidden(x, y, EXTRAS["a path"]), alpha=30.0, progress=False)
    assert any("40 of the 80" in note for note in by_path.notes)
    by_tensor = verifix.correct(
        net, hidden(x, y, lambda i: {"idx": torch.tensor(i)}), alpha=30.0, progress=False
    )  # a tensor reaches it, and only the model knows that it makes no difference
    assert not any("copies" in note for note in by_tensor.notes)


def test_with_a_forward_of_ones_own_everything_may_reach_the_model():
    x, y = small_data(40)
    net = memorised(small_net(), x, y)
    correction = verifix.correct(
        net,
        hidden(x, y, EXTRAS["an index"]),
        alpha=30.0,
        progress=False,
        forward=lambda model, inputs: model(inputs["input"]),
    )
    assert not any("copies" in note for note in correction.notes)


def test_copies_share_a_fold_also_with_an_index_beside_them():
    x, y = small_data(40)
    samples = read_samples(hidden(x, y, EXTRAS["an index"]))
    assert len(set(samples.digests)) == 80
    reaching = samples.reaching(Named(small_net()))
    assert len(set(reaching.digests)) == 40
    for fold in split_folds(reaching, 5, 0):
        assert sorted((fold + 40) % 80) == fold.tolist()
    assert reaching.subset([3, 43]).digests[0] == reaching.subset([3, 43]).digests[1]


def frames(x: np.ndarray, y: np.ndarray):
    import pandas
    import pyarrow

    frame, table = pandas.DataFrame(x), pyarrow.table({f"c{i}": x[:, i] for i in range(x.shape[1])})
    return {
        "a frame of pandas": (frame, pandas.Series(y)),
        "labels as a column": (frame, pandas.DataFrame({"y": y})["y"]),
        "a frame with an index of its own": (frame.set_axis(range(100, 100 + len(y))), pandas.Series(y, index=y)),
        "arrays of pandas": (frame.to_numpy(), pandas.array(y)),
        "a table of pyarrow": (table, pyarrow.array(y)),
        "lists": (x.tolist(), y.tolist()),
        "numpy": (x, y),
        "numpy backwards": (np.flip(np.flip(x, 1).copy(), 1), y[::-1].copy()[::-1]),
        "numpy in another byte order": (x.astype(">f4"), y.astype(">i8")),
        "numpy that is read-only": (np.broadcast_to(x, x.shape), y),
    }


@pytest.mark.parametrize("name", list(frames(np.zeros((2, 2), np.float32), np.zeros(2, int))))
def test_whatever_numpy_can_turn_into_numbers_is_read(name):
    x, y = small_data(60)
    net = memorised(small_net(), x, y)
    expected = verifix.correct(net, (x, y), alpha=30.0, **QUICK)
    found = verifix.correct(net, frames(x.numpy(), y.numpy())[name], alpha=30.0, **QUICK)
    assert all(torch.equal(found.corrected[key], value) for key, value in expected.corrected.items())


def test_a_frame_with_a_column_of_text_gets_one_line():
    import pandas

    frame = pandas.DataFrame({"a": [1.0, 2.0], "name": ["x", "y"]})
    with pytest.raises(
        DataError, match=r"^the inputs are objects, and number 1 of them is 'x'; give numbers in one array"
    ):
        verifix.correct(small_net(), (frame, [0, 1]), alpha=30.0, **QUICK)


class Stream(IterableDataset):
    def __init__(self, items) -> None:
        self.items = items

    def __iter__(self):
        return iter(self.items())


STREAMS = {
    "a stream": Stream,
    "a loader of a stream": lambda items: DataLoader(Stream(items), batch_size=16),
    "a loader without batches": lambda items: DataLoader(Stream(items), batch_size=None),
}


@pytest.mark.parametrize("form", STREAMS.values(), ids=STREAMS)
def test_a_stream_without_end_is_refused_with_the_remedy(form):
    x, y = small_data(60)
    net = memorised(small_net(), x, y)
    items = list(zip(x, y.tolist(), strict=True))
    assert verifix.correct(net, form(lambda: items), alpha=30.0, max_samples=60, **QUICK).changed
    with pytest.raises(
        DataError, match=r"goes on after 60 items, .* itertools.islice, or set max_samples= \(--max-sam"
    ):
        verifix.correct(net, form(lambda: itertools.cycle(items)), alpha=30.0, max_samples=60, **QUICK)


CALLS = {
    "correct": lambda net, data, **settings: verifix.correct(net, data, alpha=30.0, check_labels=False, **settings),
    "prove": lambda net, data, **settings: verifix.prove(
        net, data, alpha=30.0, check_labels=False, check_inputs=False, **settings, verified_from="unseen"
    ),
    "trust": lambda net, data, **settings: verifix.trust(net, data, count=30, **settings),
    "collect_moments": verifix.collect_moments,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("form", ["tensors", "list", "loader", "stream"])
def test_every_call_refuses_more_samples_than_the_setting_in_every_form(call, form):
    x, y = small_data(60)
    items = list(zip(x, y.tolist(), strict=True))
    forms = {
        "tensors": (x, y),
        "list": items,
        "loader": DataLoader(items, batch_size=16),
        "stream": Stream(lambda: items),
    }
    call(memorised(small_net(), x, y), forms[form], progress=False, max_samples=60)
    with pytest.raises(DataError, match=r"(60 samples, more than max_samples 59|after 59 items).*set max_samples="):
        call(small_net().eval(), forms[form], progress=False, max_samples=59)


def test_the_command_line_sets_how_many_samples_there_may_be(tmp_path, capsys):
    x, y = small_data(60)
    (tmp_path / "net.py").write_text("from tests.cases import small_net as build\n")
    torch.save(small_net().state_dict(), tmp_path / "net.pt")
    np.savez(tmp_path / "d.npz", x=x.numpy(), y=y.numpy())
    given = ["score", f"{tmp_path}/net.pt", "--model", f"py:{tmp_path}/net.py:build", "--data", f"{tmp_path}/d.npz"]
    assert main([*given, "--max-samples", "60"]) == 0
    assert main([*given, "--max-samples", "59"]) == 5
    assert "there are 60 samples, more than max_samples 59; give fewer (--limit draws some)" in capsys.readouterr().err
    assert main([*given, "--max-samples", "59", "--limit", "59"]) == 0


# Settings as numbers of other libraries

NUMBERS = {
    "numpy": {"alpha": np.float32(30), "seed": np.int64(3), "batch_size": np.int32(16), "folds": np.uint8(3)},
    "numpy arrays without axes": {"alpha": np.array(30.0), "seed": np.array(3), "batch_size": np.array(16)},
    "torch": {"alpha": torch.tensor(30.0), "seed": torch.tensor(3), "batch_size": torch.tensor(16)},
    "numpy, others": {
        "alpha": np.int64(30), "seed": 3, "batch_size": 16, "budget": np.float64(1e6), "padding": np.True_,
        "recipe": np.str_("verifix"), "max_samples": np.int64(100), "progress": np.False_,
    },
}  # fmt: skip


@pytest.mark.parametrize("given", NUMBERS.values(), ids=NUMBERS)
def test_single_numbers_of_numpy_and_torch_are_taken_as_python_s(given):
    x, y = small_data(60)
    net = memorised(small_net(), x, y)
    own = {"alpha": 30.0, "seed": 3, "batch_size": 16, "recipe": "verifix"}
    wanted = verifix.correct(net, (x, y), **QUICK | own)
    found = verifix.correct(net, (x, y), **QUICK | own | given)
    assert all(torch.equal(found.corrected[name], value) for name, value in wanted.corrected.items())
    assert found.provenance["alpha"] == 30.0
    assert type(found.provenance["seed"]) is int


WRONG = {
    "nan": np.float32("nan"),
    "-1": np.float64(-1),
    "two": np.array([10.0, 20.0]),
    "true": np.True_,
    "0": torch.tensor(0),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_numbers_of_other_libraries_are_checked_as_any(wrong):
    with pytest.raises(UsageError, match=r"alpha is .*; it must be a finite number above 0, or 'auto'"):
        verifix.correct(small_net(), small_data(60), alpha=wrong, **QUICK)


@pytest.mark.parametrize("name", ["seed", "batch_size", "outputs", "verified_from", "folds", "max_samples", "recipe"])
def test_arrays_of_several_numbers_are_no_setting(name):
    with pytest.raises(UsageError, match=rf"{name} is array\(\[1, 2\]\)"):
        verifix.correct(small_net(), small_data(60), **QUICK | {name: np.array([1, 2])})
