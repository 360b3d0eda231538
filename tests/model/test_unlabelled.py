"""Inputs without labels: every form they come in, what is left out, their moments, and what uses them."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import verifix
from tests.stage_cases import context_of, inputs_of, noisy_case, projected_by_hand
from verifix import DataError, UsageError
from verifix.model.borrow import borrowed
from verifix.model.samples import read_samples
from verifix.model.unlabelled import UNKNOWN, Unlabelled, combined, inputs_source
from verifix.options import CorrectArguments
from verifix.preflight import begin
from verifix.recipe import beside as pass_over
from verifix.recipe.beside import with_unlabelled
from verifix.recipe.stages import Project
from verifix.recipe.stages.project_unlabelled import ProjectUnlabelled

X = torch.arange(24.0).reshape(6, 4)
Y = torch.tensor([0, 1, 2, 0, 1, 2])
HOW = {"progress": False, "recipe": "project_unlabelled", "alpha": 30.0}


class Bare(Dataset):
    """Inputs alone."""

    def __init__(self, items) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int):
        return self.items[index]


class Stream(IterableDataset):
    def __init__(self, items) -> None:
        self.items = items

    def __iter__(self):
        return iter(self.items)


def labelled_batches(items):
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


FORMS = {
    "a tensor": X,
    "an array": X.numpy(),
    "a pair": (X, Y),
    "a pair without labels": (X, None),
    "a list of a pair": [X, Y],
    "a tuple of one": (X,),
    "labels of another kind": (X, [0.5] * 6),
    "a set of tensors": Bare(list(X)),
    "a set of lists": Bare(X.tolist()),
    "a set of pairs": TensorDataset(X, Y),
    "a set of tuples of one": TensorDataset(X),
    "a set whose labels are None": Bare([(x, None) for x in X]),
    "a set whose labels are words": Bare([(x, "cat") for x in X]),
    "a loader of inputs": DataLoader(Bare(list(X)), batch_size=4, shuffle=True),
    "a loader of pairs": DataLoader(TensorDataset(X, Y), batch_size=4),
    "a loader with its own batches": DataLoader(TensorDataset(X, Y), batch_size=4, collate_fn=labelled_batches),
    "a loader whose batches are inputs": DataLoader(Bare(list(X)), batch_size=4, collate_fn=torch.stack),
    "a stream of inputs": Stream(list(X)),
    "a stream of pairs": Stream(list(zip(X, Y, strict=True))),
    "a stream of batches": Stream([(X[:4], Y[:4]), (X[4:], Y[4:])]),
    "samples that were read": read_samples((X, Y)),
}


def read(data, **options):
    """What a correction reads, beside verified samples that are none of them."""
    model = nn.Linear(4, 3)
    verified = torch.randn(4, 4), torch.tensor([0, 1, 2, 0])
    settings = CorrectArguments(unlabelled=data, alpha=3.0, progress=False, **options)
    with begin(model, verified, settings, folds=None) as start:
        return start.whole.run.unlabelled


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_inputs_and_no_label(form):
    found = read(FORMS[form])
    batches = list(found.samples.batches([5, 0, 1, 2, 3, 4], 4))
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), X[[5, 0, 1, 2, 3, 4]])
    assert all((batch.labels == UNKNOWN).all() for batch in batches)
    assert (found.samples.labels == UNKNOWN).all()
    assert found.samples.digests == read_samples((X, Y)).digests
    assert found.given is None


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x, mask):
        return self.linear(x * mask)


@pytest.mark.parametrize(
    "data",
    [
        {"x": X, "mask": X},
        {"x": X, "mask": X, "labels": ["cat"] * 6},
        ({"x": X, "mask": X}, Y),
        Bare([{"x": x, "mask": x} for x in X]),
        Bare([{"x": x, "mask": x, "label": 1, "index": 3} for x in X]),
    ],
)
def test_dictionaries_lose_their_labels_alone(data):
    verified = {"x": torch.randn(2, 4), "mask": torch.ones(2, 4), "labels": torch.tensor([0, 1])}
    settings = CorrectArguments(unlabelled=data, alpha=3.0, progress=False)
    with begin(Named(), verified, settings, folds=None) as start:
        batch = next(start.whole.run.unlabelled.samples.batches([1, 4], 2))
    assert torch.equal(batch.inputs["x"], X[[1, 4]])
    assert torch.equal(batch.inputs["mask"], X[[1, 4]])
    assert not {"label", "labels"} & batch.inputs.keys()


def test_inputs_that_are_tuples_are_given_as_a_pair():
    batch = next(inputs_source(((X, X), None)).read([2, 3], 2))
    assert [torch.equal(part, X[2:4]) for part in batch.inputs] == [True, True]


BAD = {
    "three tensors": ((X, X, X), UsageError, "tuple of 3; give inputs alone, or a pair"),
    "two inputs": ((X, X), DataError, r"second part of a pair has the shape \[6, 4\] for 6 inputs"),
    "items of two inputs": (TensorDataset(X, X), DataError, r"unlabelled sample 0: the second part of a pair"),
    "items of three": (TensorDataset(X, Y, Y), DataError, "unlabelled sample 0: a sample of the unlabelled set has 3"),
    "too few labels": ((X, Y[:5]), DataError, r"shape \[5\] for 6 inputs"),
    "no input": (X[:0], DataError, "the unlabelled set is empty$"),
    "an empty stream": (Stream([]), DataError, "the unlabelled set is empty$"),
    "a path": ("training/", UsageError, "unlabelled is a str; it must be a DataLoader"),
    "a number": (3, UsageError, "unlabelled is a int; it must be"),
    "not finite": (torch.full((2, 4), torch.nan), DataError, "input of unlabelled sample 0 contains NaN"),
    "another width": (X[:, :3], DataError, "unlabelled samples: the model cannot run on inputs of shape"),
    "another dtype": (X.double(), DataError, "unlabelled sample 0 is torch.float64 with 1 dimension, but verified"),
    "more dimensions": (X[:, None], DataError, "unlabelled sample 0 is torch.float32 with 2 dimensions, but verified"),
    "texts": (["cat", "dog", "cow"], DataError, "unlabelled sample"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_input_of_the_model_is_refused_by_name(what):
    data, error, text = BAD[what]
    with pytest.raises(error, match=text) as caught:
        read(data)
    assert "\n" not in str(caught.value)


def test_there_may_not_be_more_than_max_samples():
    with pytest.raises(DataError, match="there are 6 samples, more than max_samples 5; give fewer, or set"):
        read(X, max_samples=5)


def test_drawn_rows_are_refused():
    with pytest.raises(UsageError, match="max_rows is 9, but drawn rows of unlabelled inputs would not count the same"):
        read(X, max_rows=9)


def test_a_held_out_sample_among_the_unlabelled_ones_is_left_out():
    model, x, y, others = noisy_case()
    alone = verifix.correct(model, (x, y), unlabelled=others, **HOW)
    leaking = verifix.correct(model, (x, y), unlabelled=torch.cat([x[7:9], others, x[7:8]]), **HOW)
    assert leaking.notes == ("3 of the 63 unlabelled samples are verified as well, and were left out.",)
    assert (alone.notes, leaking.provenance["unlabelled"]) == ((), 60)
    assert leaking.provenance["unlabelled_sha256"] == alone.provenance["unlabelled_sha256"]
    assert all(torch.equal(value, leaking.corrected[name]) for name, value in alone.corrected.items())
    assert alone.corrected


def test_inputs_that_are_all_verified_leave_none():
    model, x, y, _ = noisy_case()
    correction = verifix.correct(model, (x, y), unlabelled=x, recipe="project_unlabelled", progress=False)
    assert correction.notes[-1] == "60 of the 60 unlabelled samples are verified as well, and were left out."
    assert correction.choices["project_unlabelled"].reason.endswith("no unlabelled inputs were given")
    assert "unlabelled" not in correction.provenance


def test_samples_of_saved_moments_are_not_counted_again():
    model, x, y, others = noisy_case()
    saved = verifix.collect_moments(model, (others[:10], torch.zeros(10, dtype=torch.long)), progress=False)
    both = verifix.correct(model, (x, y), unlabelled=others, moments=saved, **HOW)
    assert both.notes == ("10 of the 60 unlabelled samples are verified as well, and were left out.",)
    plain = verifix.correct(model, (x, y), unlabelled=others, **HOW)
    for name, value in plain.corrected.items():
        assert torch.allclose(both.corrected[name], value, rtol=1e-4, atol=1e-6)


def test_every_row_counts_the_same_as_in_one_set():
    model, x, y, others = noisy_case()
    names = ["0.weight", "3.weight", "5.weight"]
    seen = inputs_of(model, torch.cat([x, others]))
    correction = verifix.correct(model, (x, y), unlabelled=others, **HOW)
    assert sorted(correction.corrected) == names
    for name in names:
        expected = projected_by_hand(correction.original[name], seen[name], 30.0)
        assert torch.allclose(correction.corrected[name].double(), expected, atol=1e-6), name
        own = projected_by_hand(correction.original[name], seen[name][:60], 30.0)
        assert not torch.allclose(correction.corrected[name].double(), own, atol=1e-4), name


def test_a_fold_is_projected_without_its_own_samples():
    model, x, y, others = noisy_case()
    with borrowed(model):
        context = context_of(model, x, y, folds=3, without=1)
        beside = Unlabelled(read_samples(inputs_source(others)))
        context, doubt = with_unlabelled(context, beside, CorrectArguments(progress=False))
        update = ProjectUnlabelled(context).fit(30.0)
        seen = inputs_of(model, torch.cat([x[context.indices], others]))
        for name, value in update.items():
            expected = projected_by_hand(context.original(name), seen[name], 30.0)
            assert torch.allclose(value.double(), expected, atol=1e-5), name
        assert doubt == ""


def test_a_limit_of_memory_changes_nothing():
    model, x, y, others = noisy_case()
    free, limited = (
        verifix.correct(model, (x, y), unlabelled=others, memory=memory, **HOW) for memory in (None, "40kB")
    )
    assert any("temporary file" in note for note in limited.notes)
    for name, value in free.corrected.items():
        assert torch.allclose(limited.corrected[name], value, atol=1e-6)
    with pytest.raises(UsageError, match=r"memory is 20 kB, but layer '3.weight' alone takes 36.9 kB; give that much"):
        verifix.correct(model, (x, y), unlabelled=others, memory="20kB", **HOW)
    assert verifix.correct(model, (x, y), unlabelled=others, memory="37kB", **HOW).corrected


def test_the_stage_needs_inputs_and_original_weights():
    model, x, y, others = noisy_case()
    with borrowed(model):
        context = context_of(model, x, y)
        assert ProjectUnlabelled(context).obstacle() == "no unlabelled inputs were given"
        beside = Unlabelled(read_samples(inputs_source(others)))
        context, _ = with_unlabelled(context, beside, CorrectArguments(progress=False))
        assert ProjectUnlabelled(context).obstacle() == ""
        later = context.after("project", 30.0, Project(context).fit(30.0))
        assert "an earlier stage has changed weights" in ProjectUnlabelled(later).obstacle()


def test_a_given_strength_runs_the_projection_that_the_inputs_are_for():
    model, x, y, others = noisy_case()
    how = {"alpha": 30.0, "progress": False}
    assert list(verifix.correct(model, (x, y), **how).choices) == ["project"]
    assert list(verifix.correct(model, (x, y), unlabelled=others, **how).choices) == ["project_unlabelled"]
    with pytest.raises(UsageError, match="no stage of recipe 'project' uses them"):
        verifix.correct(model, (x, y), unlabelled=others, recipe="project", **how)


def test_labels_that_nobody_verified_are_kept_apart():
    model, x, y, others = noisy_case()
    given = torch.arange(60) % 3
    given[3] = UNKNOWN
    settings = CorrectArguments(unlabelled=others[40:], noisy=(others[:50], given[:50]), alpha=3.0, progress=False)
    with begin(copy.deepcopy(model), (x, y), settings, folds=None) as start:
        found = start.whole.run.unlabelled
        assert start.provenance["notes"] == [
            "10 of the 20 unlabelled inputs are also noisy samples, and were left out."
        ]
        assert [start.provenance[key] for key in ("unlabelled", "unlabelled_noisy")] == [60, 49]
        batches = list(found.samples.batches(range(60), 25))
    assert torch.equal(torch.cat([batch.inputs for batch in batches]), torch.cat([others[50:], others[:50]]))
    assert torch.equal(found.given, torch.cat([torch.full((10,), UNKNOWN), given[:50]]))
    assert all((batch.labels == UNKNOWN).all() for batch in batches)


def test_both_may_be_put_into_batches_in_their_own_ways():
    noisy = DataLoader(TensorDataset(X, Y), batch_size=2, collate_fn=labelled_batches)
    both = combined(read_samples(inputs_source(X + 100)), read_samples(noisy))
    batch = next(both.samples.batches([0, 6, 7, 3], 4))
    assert torch.equal(batch.inputs, torch.stack([X[0] + 100, X[0], X[1], X[3] + 100]))
    assert torch.equal(next(both.samples.batches([8, 9], 2)).inputs, X[2:4])


@pytest.mark.parametrize("bad", [3, -100])
def test_given_labels_must_be_outputs_of_the_model(bad):
    model, x, y, others = noisy_case()
    given = torch.arange(60) % 3
    given[4] = bad
    with pytest.raises(DataError, match=f"^noisy sample 4 has label {bad}, but the model has 3 outputs"):
        verifix.correct(model, (x, y), noisy=(others, given), **HOW)


def test_noisy_samples_need_labels():
    model, x, y, others = noisy_case()
    with pytest.raises(DataError, match=r"^noisy sample 0: a batch of the noisy set has Tensor; it must be a pair"):
        verifix.correct(model, (x, y), noisy=others, **HOW)


def test_inputs_that_were_prepared_in_another_way_are_noticed():
    model, x, y, others = noisy_case()
    with pytest.raises(DataError, match=r"The inputs differ from those that the model was trained on.*the unlabelled"):
        verifix.correct(model, (x, y), unlabelled=255 * others, check_inputs=True, **HOW)
    noted = verifix.correct(model, (x, y), unlabelled=255 * others, **HOW).notes
    assert noted[0].startswith("Unlabelled inputs: The inputs differ from those that the model was trained on")


def test_samples_beyond_memory_are_read_again(monkeypatch):
    model, x, y, others = noisy_case()
    kept = verifix.correct(model, (x, y), unlabelled=Bare(list(others)), **HOW)
    monkeypatch.setattr("verifix.model.samples.MEMORY_BYTES", 100)
    again = verifix.correct(model, (x, y), unlabelled=Bare(list(others)), **HOW)
    assert all(torch.equal(value, again.corrected[name]) for name, value in kept.corrected.items())


def test_a_proof_uses_them_as_well():
    model, x, y, others = noisy_case()
    used = verifix.prove(model, (x, y), unlabelled=others, check_inputs=False, **HOW, verified_from="unseen")
    assert [fold.strengths for fold in used.folds] == [{"project_unlabelled": 30.0}] * 5


def test_a_budget_limits_the_pass_over_them_to_a_part_drawn_at_random(monkeypatch):
    model, x, y, _ = noisy_case()
    others = torch.randn(500, x.shape[1])
    given = torch.arange(500) % 3
    clock = itertools.count()
    monkeypatch.setattr(pass_over.time, "perf_counter", lambda: float(next(clock)))  # the trial takes one second
    settings = CorrectArguments(noisy=(others, given), progress=False, budget=6.25, check_inputs=False)
    with begin(model, (x, y), settings, folds=5) as start:
        used, notes = start.whole.run.unlabelled, start.provenance["notes"]
    assert len(used) == 100  # a quarter of 6.25 s, at 64 inputs per second
    assert any(note.startswith("100 of the 500 unlabelled inputs are used, drawn at random") for note in notes)
    (batch,) = used.samples.batches(range(100), 100)
    rows = [int((others == row).all(1).nonzero()) for row in batch.inputs]
    assert rows == sorted(set(rows))
    assert rows != list(range(100))
    assert torch.equal(used.given, given[rows])
    for budget in (None, 60.0):
        with begin(model, (x, y), replace(settings, budget=budget), folds=5) as start:
            assert len(start.whole.run.unlabelled) == 500
