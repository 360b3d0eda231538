"""Models that give a sample another answer: in another run, in another batch, or as a copy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import DataError, UsageError

QUICK = {"alpha": 30.0, "progress": False, "check_labels": False}


def by_batch() -> nn.Module:
    net = small_net()
    net[1] = nn.BatchNorm1d(16, track_running_stats=False)
    return net.eval()


class Centred(nn.Module):
    """Takes the mean of the batch off, which is 0 for one sample alone."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net().eval()

    def forward(self, x):
        return self.net(x - x.mean(0))


class Attending(Centred):
    """Lets samples attend to each other, as a batch first and a batch second are mistaken for each other."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)

    def forward(self, x):
        return self.net(x + self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0])


DEPENDING = {"the mean of the batch": Centred, "attention": Attending}


@pytest.mark.parametrize("build", DEPENDING.values(), ids=DEPENDING)
def test_answers_that_depend_on_the_batch_are_told_with_the_remedy(build):
    x, y = small_data(80)
    correction = verifix.correct(build().eval(), (x, y), **QUICK)
    told = [note for note in correction.notes if "depend on the other samples of its batch" in note]
    assert len(told) == 1
    assert "track_running_stats=True" in told[0]
    assert told[0] in correction.summary()


def test_a_model_that_cannot_run_on_one_sample_is_refused_with_the_remedy():
    x, y = small_data(80)
    with pytest.raises(DataError, match=r"runs on 2 samples together, but not on one alone, .* the batch; normalise"):
        verifix.correct(by_batch(), (x, y), **QUICK)


@pytest.mark.parametrize("build", [Centred, lambda: Drawing(WAYS["noise"])])
def test_no_change_proves_nothing_whatever_the_batches_and_the_draws(build):
    x, y = small_data(80)
    order = y.argsort(stable=True)  # so that folds and the whole are batches of other composition
    meaningless = torch.randint(0, 3, (80,), generator=torch.Generator().manual_seed(0))
    unchecked = {"check_labels": False, "check_inputs": False}
    model, samples = build().eval(), (x[order], meaningless)
    proof = verifix.prove(
        model, samples, recipe="verifix", progress=False, batch_size=16, **unchecked, verified_from="unseen"
    )
    untouched = [fold for fold in proof.folds if fold.strengths["project"] is None]
    assert untouched
    if len(untouched) == len(proof.folds):
        assert torch.equal(proof.before, proof.after)
        assert proof.comparison.changed == 0


class Drawing(nn.Module):
    def __init__(self, way) -> None:
        super().__init__()
        self.net, self.way = small_net().eval(), way

    def forward(self, x):
        return self.net(self.way(x))


WAYS = {
    "dropout": lambda x: F.dropout(x, 0.2),
    "noise": lambda x: x + 0.1 * torch.randn_like(x),
    "columns in another order": lambda x: x[:, torch.randperm(x.shape[1])],
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_answers_that_differ_from_run_to_run_are_told(way):
    model, (x, y) = Drawing(way), small_data(80)
    state = torch.get_rng_state()
    correction = verifix.correct(model, (x, y), **QUICK)
    assert any("Two runs of the model on the same samples give different outputs" in n for n in correction.notes)
    assert torch.equal(torch.get_rng_state(), state)


class Keeping(nn.Module):
    """Keeps features by a hook that closes over the object that it was made in."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.kept = small_net().eval(), {}
        self.net[2].register_forward_hook(lambda module, inputs, output: self.kept.update(features=output))

    def forward(self, x):
        self.net(x)
        return self.net[3:](self.kept["features"])


def test_a_copy_that_still_uses_the_original_is_told_from_a_model_that_does_not_run():
    x, y = small_data(80)
    model = Keeping()
    with pytest.raises(UsageError, match=r"a copy of the model does not run, although the model itself does .*hook"):
        verifix.correct(model, (x, y), **QUICK)
    assert model.kept == {}


def test_a_copy_that_answers_by_what_the_original_once_kept_is_refused():
    x, y = small_data(80)
    model = Keeping()
    with torch.no_grad():
        model(x[40:42])
    kept = model.kept["features"]
    with pytest.raises(UsageError, match="a copy of the model gives other outputs than the model itself"):
        verifix.correct(model, (x, y), **QUICK)
    assert model.kept["features"] is kept


class Averaging(nn.Module):
    """Averages over tokens, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.net = nn.Embedding(20, 8), small_net().eval()

    def forward(self, ids):
        return self.net(self.table(ids).mean(1))


def test_answers_that_depend_on_the_padding_are_told():
    torch.manual_seed(3)
    items = [(torch.randint(1, 20, (3 + i % 5,)), i % 3) for i in range(60)]

    def collate(pairs):
        ids = nn.utils.rnn.pad_sequence([ids for ids, _ in pairs], batch_first=True)
        return ids, torch.tensor([label for _, label in pairs])

    loader = torch.utils.data.DataLoader(items, batch_size=8, collate_fn=collate)
    correction = verifix.correct(Averaging().eval(), loader, **QUICK)
    assert any("depend on how far its batch is padded" in note for note in correction.notes)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ordinary_models_are_steady(dtype):
    x, y = small_data(80)
    model = memorised(small_net(), x, y).to(dtype)
    correction = verifix.correct(model, (x.to(dtype), y), **QUICK)
    assert not any("output" in note for note in correction.notes)


# State that is kept from call to call


class Recurrent(nn.Module):
    """Keeps the hidden state of the last batch, as people do who forget to reset it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.cell, self.net = nn.GRU(8, 8, batch_first=True), small_net().eval()
        self.hidden = None

    def forward(self, x):
        outputs, self.hidden = self.cell(x[:, None], self.hidden)
        return self.net(x + outputs[:, -1])


class ByShape(Recurrent):
    """Keeps it where the next batch has as many samples."""

    def forward(self, x):
        if self.hidden is not None and self.hidden.shape[1] != len(x):
            self.hidden = None
        return super().forward(x)


class Average(nn.Module):
    """Centres by a running mean that it updates in every mode, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net().eval()
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x):
        self.mean.mul_(0.5).add_(0.5 * x.mean(0))
        return self.net(x - self.mean)


class FirstBatch(nn.Module):
    """Takes its statistics from the first batch that it sees, and keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self._mean = small_net().eval(), None

    def forward(self, x):
        if self._mean is None:
            self._mean = x.mean(0)
        return self.net(x - self._mean)


class Counting(nn.Module):
    """Counts its calls, and adds them up in its answers."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.calls = small_net().eval(), 0

    def forward(self, x):
        self.calls += 1
        return self.net(x) + self.calls * torch.arange(3)


class Bank(nn.Module):
    """Compares with all that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.seen = small_net().eval(), []

    def forward(self, x):
        self.seen.append(x.mean(0))
        return self.net(x - torch.stack(self.seen).mean(0))


KEEPING = {
    "hidden": Recurrent, "by shape": ByShape, "mean": Average, "_mean": FirstBatch, "calls": Counting, "seen": Bank
}  # fmt: skip


@pytest.mark.parametrize("form", KEEPING)
def test_state_that_answers_depend_on_is_refused_with_its_name_and_the_remedy(form):
    x, y = small_data(80)
    model = KEEPING[form]().eval()
    before = {name: value for name, value in vars(model).items() if not isinstance(value, (dict, set))}
    content = [value.clone() for value in model.state_dict().values()]
    name = "hidden" if form == "by shape" else form
    with pytest.raises(UsageError, match=rf"run on before, because it keeps '{name}' from call .* start of forward"):
        verifix.correct(model, (x, y), **QUICK)
    assert {name: value for name, value in vars(model).items() if name in before} == before
    assert all(map(torch.equal, model.state_dict().values(), content))


def test_state_that_is_reset_or_only_recorded_is_no_matter():
    class Reset(Recurrent):
        def forward(self, x):
            self.hidden = None
            return super().forward(x)

    class Recording(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.last, self.steps, self.all = small_net().eval(), None, 0, {}

        def forward(self, x):
            self.last, self.steps = x, self.steps + 1
            self.all[self.steps] = x
            return self.net(x)

    x, y = small_data(80)
    for model in (Reset().eval(), Recording().eval()):
        own = dict(vars(model))
        correction = verifix.correct(model, (x, y), **QUICK)
        assert not [note for note in correction.notes if "near chance" not in note]
        assert dict(vars(model)) == own
    assert model.all == {}


def test_a_reset_by_forward_is_the_remedy():
    def forward(model, inputs):
        model.hidden = None
        return model(inputs)

    x, y = small_data(80)
    found = verifix.correct(Recurrent().eval(), (x, y), forward=forward, **QUICK)
    assert not [note for note in found.notes if "near chance" not in note]
