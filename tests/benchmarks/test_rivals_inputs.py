"""Rivals that learn from training inputs as well: what they use, and their parts against plain loops."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from benchmarks.methods import METHODS, Needs
from benchmarks.methods.augmentation import SHIFT, Augmentation, can_change, shifted, squares
from benchmarks.methods.base import Case, Tool, contexts, predictor
from benchmarks.methods.colur import SURE, SUREST, Parts, relearned, sharpened, smoothed
from benchmarks.methods.fixmatch import FixMatch, consistency
from benchmarks.methods.semi import VERIFIED, both, endless

from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix.model.borrow import borrowed
from verifix.model.clone import copy_model
from verifix.model.samples import read_samples

RIVALS = [name for name, entry in METHODS.items() if not isinstance(entry.make, Tool)]


def case_of(seed: int = 0, training: int = 60) -> Case:
    torch.manual_seed(0)
    x, y = small_data(60)
    model = memorised(small_net(), x, y)
    generator = torch.Generator().manual_seed(seed)
    other = torch.randn(training, x.shape[1], generator=generator)
    given = torch.randint(0, 3, (training,), generator=generator)
    truth = (given + (torch.arange(training) % 3 == 0)) % 3
    return Case(model, read_samples((x, y)), read_samples((other, given)), truth, tuple(range(20)), lambda _: model, 3)


def predictions(name: str, case: Case) -> torch.Tensor:
    """What the first setting of a method predicts, fitted on all folds but one."""
    model = copy_model(case.model)
    with borrowed(model), torch.no_grad():
        method = METHODS[name].make(case, contexts(case, model)[1][1])
        return predictor(model, method.fit(method.candidates().strengths[0]))(case.verified, range(60))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RIVALS if METHODS[name].needs is Needs.VERIFIED])
def test_who_needs_verified_samples_only_is_blind_to_the_training_set(name):
    assert torch.equal(predictions(name, case_of(0)), predictions(name, case_of(1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in RIVALS if METHODS[name].needs is Needs.INPUTS])
def test_who_needs_training_inputs_is_blind_to_their_labels(name):
    case = case_of(0)
    (batch,) = case.training.batches(range(60), 60)
    others = read_samples((batch.inputs, (case.training.labels + 1) % 3))
    blind = replace(case, training=others, truth=(case.truth + 2) % 3, checked=(1, 2))
    found = predictions(name, case)
    assert torch.equal(found, predictions(name, blind))
    if name != "truncation":  # whose first setting is made from the verified samples
        assert not torch.equal(found, predictions(name, case_of(1)))


def test_the_tool_gets_what_the_table_says():
    case = case_of()
    plain = {"recipe": "auto", "seed": 0, "progress": False}
    assert METHODS["auto"].make.arguments(case) == plain
    (batch,) = case.training.batches(range(60), 60)
    for name, entry in METHODS.items():
        if isinstance(entry.make, Tool):
            found = entry.make.arguments(case)
            assert ("unlabelled" in found) == (entry.needs is Needs.INPUTS), name
            assert ("noisy" in found) == (entry.needs is Needs.GIVEN), name
    assert torch.equal(METHODS["auto_unlabelled"].make.arguments(case)["unlabelled"], batch.inputs)
    inputs, given = METHODS["auto_noisy"].make.arguments(case)["noisy"]
    assert torch.equal(inputs, batch.inputs)
    assert torch.equal(given, case.training.labels)


def test_needs_are_in_order():
    assert [need.no_more_than(Needs.GIVEN) for need in Needs] == [True, True, True, False, False]


def test_indices_without_end_hold_each_one_equally_often():
    drawn = torch.cat(list(itertools.islice(endless(7, 5, torch.Generator().manual_seed(0)), 14)))
    assert torch.bincount(drawn).tolist() == [10] * 7
    assert sorted(drawn[:7].tolist()) == list(range(7))
    assert drawn[:7].tolist() != drawn[7:14].tolist()


def nll(logits, label):
    return math.log(sum(math.exp(z) for z in logits)) - logits[label]


def test_verified_and_other_samples_weigh_the_same():
    torch.manual_seed(0)
    logits, labels, targets = torch.randn(5, 3).double(), torch.tensor([0, 2]), torch.rand(3, 3).double()
    z = logits.tolist()
    verified = (nll(z[0], 0) + nll(z[1], 2)) / 2
    others = sum(float(targets[i, k]) * nll(z[2 + i], k) for i in range(3) for k in range(3)) / 3
    assert float(both(logits, (labels, targets))) == pytest.approx(verified + others, rel=1e-12)


def test_consistency_counts_inputs_that_the_network_is_sure_of():
    torch.manual_seed(1)
    logits = 3 * torch.randn(2 + 4 + 4, 3).double()
    labels, threshold = torch.tensor([1, 0]), 0.8
    z, total = logits.tolist(), 0.0
    sure = 0
    for i in range(4):
        likely = [math.exp(-nll(z[2 + i], k)) for k in range(3)]
        if max(likely) >= threshold:
            sure += 1
            total += nll(z[6 + i], likely.index(max(likely))) / 4
    assert 0 < sure < 4
    expected = (nll(z[0], 1) + nll(z[1], 0)) / 2 + total
    assert float(consistency(logits, labels, threshold)) == pytest.approx(expected, rel=1e-12)
    logits.requires_grad_()
    (slope,) = torch.autograd.grad(consistency(logits, labels, threshold), logits)
    assert not slope[2:6].any()  # what is only a little changed teaches, and is not taught


@pytest.mark.parametrize("sharpness", [1.0, 4.0])
def test_inputs_are_sorted_by_how_sure_both_networks_are(sharpness):
    torch.manual_seed(2)
    worker, teacher = (torch.softmax(sharpness * torch.randn(50, 3).double(), 1) for _ in range(2))
    together = [math.sqrt(float(w.max()) * float(t.max())) for w, t in zip(worker, teacher, strict=True)]
    agree = [int(w.argmax()) == int(t.argmax()) for w, t in zip(worker, teacher, strict=True)]
    first = sorted((i for i in range(50) if agree[i]), key=lambda i: -together[i])
    surest = first[: round(SUREST * len(first))]
    apart = [i for i in range(50) if not agree[i] and together[i] >= SURE]
    agreed = [i for i in range(50) if agree[i] and (together[i] >= SURE or i in surest)]
    parts = Parts.of(worker, teacher)
    assert parts.apart.tolist() == apart
    assert parts.agreed.tolist() == agreed
    assert parts.unsure.tolist() == [i for i in range(50) if i not in apart + agreed]
    assert parts.share == pytest.approx(len(apart) / agree.count(False))
    assert parts.answer.tolist() == teacher.argmax(1).tolist()


def test_what_is_relearned_lies_between_an_unsure_and_a_sure_input():
    torch.manual_seed(3)
    worker, teacher = (torch.softmax(2 * torch.randn(40, 3).double(), 1) for _ in range(2))
    parts = Parts.of(worker, teacher)
    place = torch.zeros(40, 2).double()
    place[parts.unsure, 0], place[parts.agreed, 1] = 1.0, 1.0
    x, targets = relearned(place, [worker, teacher], parts, torch.Generator().manual_seed(0))
    assert len(x) == max(len(parts.unsure), len(parts.agreed))
    torch.testing.assert_close(x.sum(1), torch.ones(len(x)).double())
    torch.testing.assert_close(targets.sum(1), torch.ones(len(x)).double())
    assert x.min() >= 0
    assert x[:, 0].std() > 0.1
    tokens, targets = relearned(place.long(), [worker, teacher], parts, torch.Generator().manual_seed(0))
    assert torch.equal(tokens, place.long()[parts.unsure])  # tokens are not mixed
    _, targets = relearned(place.long(), [worker, worker], parts, torch.Generator().manual_seed(0))
    torch.testing.assert_close(targets, sharpened(worker[parts.unsure]))


def test_sharpening_and_smoothing_are_their_formulas():
    p = torch.tensor([[0.6, 0.3, 0.1]]).double()
    squared = [0.36, 0.09, 0.01]
    torch.testing.assert_close(sharpened(p)[0].tolist(), [value / 0.46 for value in squared])
    torch.testing.assert_close(smoothed(p, 0.3)[0].tolist(), [0.7 * 0.6 + 0.1, 0.7 * 0.3 + 0.1, 0.7 * 0.1 + 0.1])


def test_shifts_move_images_and_repeat_their_border():
    x = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5).double()
    found = shifted(x, 2, torch.Generator().manual_seed(1))
    for image, new in zip(x, found, strict=True):
        moved = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if all(
                new[c, i, j] == image[c, min(max(i + down, 0), 3), min(max(j + right, 0), 4)]
                for c in range(3)
                for i in range(4)
                for j in range(5)
            )
        ]
        assert len(moved) == 1
    assert not torch.equal(found, x)


def test_strong_changes_are_larger_and_only_numbers_are_changed():
    generator = torch.Generator().manual_seed(0)
    for shape in ((40, 6), (40, 3, 16, 16)):
        x = torch.randn(shape, generator=generator)
        change = Augmentation(x, mirrored=True, generator=generator)
        weak, strong = ((made - x).norm() for made in (change.weak(x), change.strong(x)))
        assert weak > 0  # images of noise, where a shift is as large as any change
        assert strong > 0
        assert shape != (40, 6) or weak < strong
        assert can_change(x)
    table = torch.randn(500, 6, generator=generator) * torch.tensor([1.0, 10.0, 0.0, 1.0, 1.0, 1.0])
    moved = Augmentation(table, mirrored=False, generator=generator).weak(table) - table
    torch.testing.assert_close(moved.std(0)[:3], torch.tensor([0.05, 0.5, 0.0]), rtol=0.2, atol=1e-6)
    assert not can_change(torch.ones(3, 5, dtype=torch.long))
    assert not can_change({"input_ids": torch.ones(3, 5)})
    hidden = squares(torch.zeros(200, 1, 16, 16), generator)
    assert hidden.shape == (200, 1, 16, 16)
    assert hidden.sum((1, 2, 3)).max() == 9 * 9
    assert SHIFT * 2 == 16  # an eighth of 16 is 2, as far as the test above goes


def test_tokens_are_refused_where_inputs_have_to_change():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(9, 3), torch.nn.Flatten(), torch.nn.Linear(6, 3)).eval()
    samples = read_samples((torch.randint(0, 9, (30, 2)), torch.arange(30) % 3))
    case = Case(model, samples, samples, samples.labels, (), lambda _: model, 3)
    with borrowed(copied := copy_model(model)), torch.no_grad():
        assert "neither images nor tables" in FixMatch(case, contexts(case, copied)[0]).obstacle()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pseudo_labels", "fixmatch", "colur"])
def test_they_learn_from_the_verified_samples_and_stay_sane(name):
    case = case_of()
    x = next(case.verified.batches(range(60), 60)).inputs
    turned = replace(case, verified=read_samples((x, (case.verified.labels + 1) % 3)))  # all that it knows is wrong
    model = copy_model(turned.model)
    with borrowed(model), torch.no_grad():
        method = METHODS[name].make(turned, contexts(turned, model)[0])
        setting = max(method.candidates().strengths, key=lambda s: (s[0], s[-1]))  # the longest, at the highest rate
        logits = predictor(model, method.fit(setting))(turned.verified, range(60))
    assert float((logits.argmax(1) == turned.verified.labels).double().mean()) > 0.75
    assert VERIFIED < 60
