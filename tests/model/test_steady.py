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
    proof = verifix.prove(model, samples, recipe="verifix", progress=False, batch_size=16, **unchecked)
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
