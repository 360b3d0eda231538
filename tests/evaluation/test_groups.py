"""Copies, near-copies and declared groups count as one: against enumerations and loops that are slow and obvious."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import verifix
from verifix import DataError, UsageError, class_weights, compare
from verifix.evaluation.duplicates import without_leaks
from verifix.evaluation.near_copies import near_copies
from verifix.evaluation.significance import (
    Outcomes,
    by_group,
    gain_interval,
    mcnemar,
    moments_of,
    p_values,
    sign_flip,
    strata_of,
)
from verifix.model.folds import split_folds
from verifix.model.groups import as_groups, joined
from verifix.model.samples import read_samples
from verifix.proof import halves, measured
from verifix.recipe.candidates import Listed
from verifix.recipe.decision import Raced, Scores, choose
from verifix.report.proof_section import interval

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"progress": False, "check_labels": False}
PROOF = {**QUIET, "check_inputs": False}


def paired(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predicted classes before and after, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 3, n)
    before = np.where(generator.random(n) < 0.5, labels, (labels + 1) % 3)
    return before, np.where(generator.random(n) < 0.65, labels, (labels + 1) % 3), labels


def ragged(seed: int, groups: int = 12, most: int = 6) -> np.ndarray:
    generator = np.random.default_rng(seed)
    numbers = np.repeat(np.arange(groups), generator.integers(1, most + 1, groups))
    return joined(generator.permutation(numbers).tolist())


def outcomes_of(groups: np.ndarray, seed: int, weights: np.ndarray | None = None) -> Outcomes:
    d = np.random.default_rng(seed).choice([1, 1, 0, -1], len(groups))
    return Outcomes(d, weights, np.zeros(len(groups), np.int64))


# Tests.


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_the_share_of_signs_is_that_of_all_of_them(seed):
    totals = np.random.default_rng(seed).integers(-4, 6, 11)
    sums = [np.dot(signs, np.abs(totals)) for signs in itertools.product((-1, 1), repeat=len(totals))]
    assert sign_flip(totals) == pytest.approx(np.mean(np.array(sums) >= totals.sum()), abs=1e-12)


def test_signs_of_single_samples_are_those_of_mcnemar():
    for wins, losses in ((5, 0), (9, 3), (40, 22), (0, 4), (0, 0)):
        assert sign_flip(np.array([1] * wins + [-1] * losses + [0] * 5)) == pytest.approx(mcnemar(wins, losses))


def test_the_exact_share_of_many_large_groups_is_that_of_drawn_signs():
    totals = np.random.default_rng(0).integers(-40, 60, 300)
    drawn = np.random.default_rng(1).choice([-1, 1], (20_000, 300)) @ np.abs(totals)
    assert sign_flip(totals // 3) < 1e-6
    small = np.concatenate([totals[:60], -totals[:50]])
    drawn = np.random.default_rng(1).choice([-1, 1], (20_000, 110)) @ np.abs(small)
    assert sign_flip(small) == pytest.approx(np.mean(drawn >= small.sum()), abs=0.01)


@pytest.mark.parametrize("copies", [2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_copies_of_every_sample_change_nothing(copies, seed):
    before, after, labels = paired(40, seed)
    once = compare(before, after, labels)
    again = compare(*(np.repeat(x, copies) for x in (before, after, labels)), groups=np.repeat(np.arange(40), copies))
    assert again.groups == 40
    assert (again.p_better, again.p_worse, again.verdict) == (once.p_better, once.p_worse, once.verdict)
    assert again.gain == once.gain
    assert again.samples_needed == (None if once.samples_needed is None else copies * once.samples_needed)
    assert (again.samples, again.fixed, again.broken) == (40 * copies, copies * once.fixed, copies * once.broken)
    naive = compare(*(np.repeat(x, copies) for x in (before, after, labels)))
    assert naive.gain.high - naive.gain.low < once.gain.high - once.gain.low


def test_copies_of_weighted_samples_change_nothing():
    before, after, labels = paired(60, 4)
    shares = [0.6, 0.3, 0.1]
    once = compare(before, after, labels, weights=class_weights(labels, shares))
    many = [np.repeat(x, 3) for x in (before, after, labels)]
    again = compare(*many, weights=class_weights(many[2], shares), groups=np.repeat(np.arange(60), 3))
    assert again.p_better == pytest.approx(once.p_better, rel=1e-9)
    assert again.gain.low == pytest.approx(once.gain.low)
    assert again.gain.high == pytest.approx(once.gain.high)
    assert again.samples_needed == pytest.approx(3 * once.samples_needed, abs=3)


def test_groups_of_one_sample_are_no_groups():
    before, after, labels = paired(50, 5)
    assert compare(before, after, labels, groups=[f"p{i}" for i in range(50)]) == compare(before, after, labels)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_error_of_ragged_groups_is_that_of_a_loop(weighted):
    groups = ragged(0)
    weights = np.random.default_rng(2).uniform(0.2, 2, len(groups)) if weighted else np.ones(len(groups))
    weights = weights / weights.mean()
    each = outcomes_of(groups, 1, weights if weighted else None)
    found = by_group(each, groups)
    assert found.gain == pytest.approx(each.gain)
    total = [sum(w for w, g in zip(weights, groups, strict=True) if g == k) for k in range(12)]
    change = [
        sum(w * (d - each.gain) for w, d, g in zip(weights, each.differences, groups, strict=True) if g == k)
        for k in range(12)
    ]
    moved = sum(abs(c + each.gain * t) > 1e-9 for c, t in zip(change, total, strict=True))
    rate = (moved + 1) / 13
    variance = (sum(c * c for c in change) + 2 * rate * sum(t * t for t in total) / 12) * 12 / 13 + max(total) ** 2
    assert moments_of(found).error == pytest.approx(math.sqrt(variance) / len(groups))


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_interval_of_ragged_groups_is_that_of_a_loop_over_groups(weighted):
    groups = ragged(3, groups=25)
    weights = np.random.default_rng(2).uniform(0.2, 2, len(groups)) if weighted else None
    each = outcomes_of(groups, 4, None if weights is None else weights / weights.mean())
    found = gain_interval(by_group(each, groups), 0)
    w = np.ones(len(groups)) if weights is None else weights
    members = [np.flatnonzero(groups == k) for k in range(25)]
    generator, gains = np.random.default_rng(7), []
    for _ in range(20_000):
        rows = np.concatenate([members[k] for k in generator.integers(0, 25, 25)])
        gains.append(100 * np.dot(w[rows], each.differences[rows]) / w[rows].sum())
    low, high = np.percentile(gains, [2.5, 97.5])
    assert found.estimate == pytest.approx(100 * each.gain)
    assert found.low == pytest.approx(low, abs=1.5)
    assert found.high == pytest.approx(high, abs=1.5)


def test_ragged_groups_are_tested_by_the_larger_of_two():
    groups = ragged(5, groups=14)
    found = by_group(outcomes_of(groups, 6), groups)
    better, worse = p_values(found, 0)
    assert better >= sign_flip(found.totals)
    assert worse >= sign_flip(-found.totals)
    assert found.totals.sum() == pytest.approx(found.gain * len(groups))


def test_a_rare_heavy_loss_that_was_not_seen_is_not_taken_for_none():
    """Groups of ten that gain one answer each, or, one in ten, lose all: the truth is 0, and signs alone see a gain."""
    generator, accepted, by_signs = np.random.default_rng(0), 0, 0
    groups = np.repeat(np.arange(20), 10)
    for run in range(400):
        heavy = generator.random(20) < 1 / 11
        d = np.where(heavy[groups], -1, np.tile([1] + [0] * 9, 20))
        found = by_group(Outcomes(d, None, np.zeros(200, np.int64)), groups)
        accepted += p_values(found, run)[0] < 0.025
        by_signs += sign_flip(found.totals) < 0.025
    assert by_signs > 40
    assert accepted <= 20


def test_a_group_of_several_classes_puts_all_samples_into_one_stratum():
    labels = np.array([0, 0, 0, 1, 1, 1] * 5)
    weights = class_weights(labels, [0.8, 0.2])
    strata = strata_of(labels, weights)
    each = Outcomes(np.random.default_rng(0).choice([1, 0, -1], 30), weights, strata)
    apart = by_group(each, joined((np.arange(30) // 3).tolist()))
    assert len(np.unique(apart.strata)) == 2
    assert len(np.unique(by_group(each, joined((np.arange(30) // 6).tolist())).strata)) == 1


def test_what_groups_need_to_decide_is_told_in_samples_and_groups():
    before, after, labels = paired(60, 8)
    found = compare(before, after, labels, groups=np.arange(60) // 5)
    assert found.verdict == "not proven"
    assert found.groups == 12
    text = found.summary()
    assert "The 60 samples are 12 independent groups" in text
    assert "more groups, would decide" in text
    assert "second look" in text
    assert found.samples_needed > 60
    assert interval(found.before.accuracy, found) == (None, None)


# What is taken for groups.


@pytest.mark.parametrize(
    "values",
    [
        ["a", "b", "a", "c"],
        ("a", "b", "a", "c"),
        np.array(["a", "b", "a", "c"]),
        pd.Series(["a", "b", "a", "c"], index=[7, 7, 1, 0]),
        pd.Categorical(["a", "b", "a", "c"]),
        [3, 1.5, 3.0, "x"],
        np.array([3, 1, 3, 2], np.uint8),
        torch.tensor([3, 1, 3, 2]),
        [("h1", 1), ("h1", 2), ("h1", 1), ("h2", 1)],
    ],
    ids=["list", "tuple", "array", "series", "categorical", "mixed", "bytes", "tensor", "pairs"],
)
def test_one_value_per_sample_in_any_form_makes_groups(values):
    assert joined(as_groups(values, 4)).tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ("patient", UsageError, "groups is a str; it must be an array or a list with one value for each of the 4"),
        ({"a": 1}, UsageError, "groups is a dict"),
        ({1, 2, 3, 4}, UsageError, "groups is a set"),
        (7, UsageError, "groups is a int"),
        ([1, 2, 3], DataError, "groups have 3 values for 4 samples"),
        ([1, 2, None, 3], DataError, "the group of sample 2 is None"),
        (np.array([1, 2, np.nan, 3]), DataError, "the group of sample 2 is nan"),
        (pd.Series(["a", None, "b", "c"]), DataError, "the group of sample 1 is"),
        (pd.array([1, None, 2, 3]), DataError, "the group of sample 1 is <NA>"),
        ([[1], [2], [3], [4]], UsageError, "the group of sample 0 is a list"),
        (np.zeros((4, 2)), UsageError, "the group of sample 0 is a list"),
        (torch.tensor(3), (UsageError, DataError), "group"),
    ],
    ids=["text", "dict", "set", "number", "short", "none", "nan", "series", "na", "lists", "matrix", "scalar"],
)
def test_what_is_no_value_per_sample_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        as_groups(values, 4)


def test_equal_inputs_connect_declared_groups():
    x = torch.randn(6, 3)
    x[4] = x[1]
    samples = read_samples((x, torch.zeros(6, dtype=torch.long)), groups=["a", "a", "b", "c", "b", "d"])
    assert samples.groups.tolist() == [0, 0, 0, 1, 0, 2]
    assert samples.subset([3, 4, 5]).groups.tolist() == [0, 1, 2]
    assert read_samples((x, torch.zeros(6, dtype=torch.long))).groups.tolist() == [0, 1, 2, 3, 1, 4]


# Folds, halves, tests.


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


def copied(bases: int, copies: int, jitter: float, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points with copies, random labels, and which copies belong together."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(bases, 8, generator=generator).repeat_interleave(copies, 0)
    y = torch.randint(4, (bases,), generator=generator).repeat_interleave(copies)
    noise = jitter * torch.randn(x.shape, generator=generator)
    return x + noise, y, torch.arange(bases).repeat_interleave(copies)


def test_no_group_stands_on_both_sides_of_anything():
    x, y, g = copied(40, 5, 0.05, 0)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))
    x, y, g = x[order], y[order], g[order]
    samples = read_samples((x, y), groups=[f"patient {int(k)}" for k in g])
    for folds in (2, 5):
        split = split_folds(samples, folds, 0)
        owners = [set(g[part].tolist()) for part in split]
        assert sum(map(len, owners)) == 40
        assert sorted(np.concatenate(split).tolist()) == list(range(200))
    correcting, proving = halves(samples, 0)
    assert set(g[correcting].tolist()).isdisjoint(g[proving].tolist())
    found = verifix.prove(net(), (x, y), alpha=10.0, groups=g, **PROOF, verified_from="unseen")
    assert found.comparison.groups == 40


def test_too_few_or_too_uneven_groups_are_refused():
    x, y, g = copied(40, 5, 0.05, 0)
    with pytest.raises(DataError, match="200 samples have only 4 independent groups, too few for 5 folds"):
        verifix.prove(net(), (x, y), alpha=10.0, groups=g % 4, **PROOF, verified_from="unseen")
    with pytest.raises(DataError, match="all 3 samples are of one group"):
        compare([0, 1, 0], [1, 1, 0], [0, 1, 1], groups=["a"] * 3)
    with pytest.raises(DataError, match="groups have 199 values for 200 samples"):
        verifix.correct(net(), (x, y), alpha=10.0, groups=g[1:], **QUIET)


def test_groups_choose_as_their_folds_do_and_stand_in_the_provenance():
    x, y, g = copied(40, 5, 0.05, 0)
    plain = verifix.correct(net(), (x, y), recipe="refit", **QUIET)
    grouped = verifix.correct(net(), (x, y), recipe="refit", groups=g, **QUIET)
    assert plain.changed
    assert any("near-copies" in note for note in plain.notes)
    assert not any("near-copies" in note for note in grouped.notes)
    assert not grouped.changed  # labels without meaning
    assert grouped.provenance["groups"] == 40
    assert "groups" not in plain.provenance


def test_test_samples_of_a_verified_group_are_left_out_with_all_that_hangs_on_them():
    x, y = torch.randn(12, 8), torch.arange(12) % 4
    verified = read_samples((x[:4], y[:4]), groups=["a", "b", "c", "d"])
    x[6] = x[0]  # a verified input, and then all of group e
    test = read_samples((x[4:], y[4:]), groups=["d", "x", "e", "e", "e", "y", "z", "y"])
    assert without_leaks(test, [verified]) == [1, 5, 6, 7]
    ungrouped = read_samples((x[4:], y[4:]))
    assert without_leaks(ungrouped, [verified]) == [0, 1, 3, 4, 5, 6, 7]
    assert without_leaks(ungrouped, [], frozenset({verified.digests[0]})) == [0, 1, 3, 4, 5, 6, 7]
    with pytest.raises(DataError, match="all 1 test samples are among"):
        without_leaks(read_samples((x[4:5], y[4:5]), groups=["d"]), [verified])


def test_copies_among_test_samples_count_once():
    x, y, _ = copied(30, 4, 0.0, 2)
    model, fixed = net(), verifix.correct(net(), (torch.randn(60, 8), torch.arange(60) % 4), alpha=3.0, **QUIET)
    proof = measured("test", model, fixed, read_samples((x, y)), range(len(x)))
    once = measured("test", model, fixed, read_samples((x[::4], y[::4])), range(30))
    assert proof.comparison.groups == 30
    assert proof.comparison.p_better == once.comparison.p_better
    assert proof.comparison.gain == once.comparison.gain


@pytest.mark.slow
@pytest.mark.parametrize(("bases", "copies"), [(100, 2), (40, 5), (20, 10)])
def test_labels_without_meaning_are_not_proved_by_copies(bases, copies):
    verdicts = []
    for seed in range(40):
        x, y, _ = copied(bases, copies, 0.0, 100 + seed)
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
        verdicts.append(verifix.prove(model, (x, y), alpha=10.0, **PROOF, verified_from="unseen").verdict)
    assert verdicts.count("improved") <= 4


# The choice of strengths.


def scored(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    right = (torch.rand(n, generator=generator) < 0.6).double()
    gains = 0.1 + torch.randn(n, generator=generator).double()
    return gains, right, (torch.rand(n, generator=generator) < 0.7).double()


def chosen(gains, right, after, groups=None):
    base = Scores(torch.ones(len(gains)).double(), float(right.mean()), right, groups)
    tried = Scores(1 - gains, float(after.mean()), after, groups)
    return choose(base, lambda strengths: Raced(dict.fromkeys(strengths, tried)), Listed((1.0,))).points[1]


def test_a_choice_among_copies_is_as_sure_as_without_them():
    once = scored(50, 0)
    wanted = chosen(*once)
    many = [x.repeat_interleave(4) for x in once]
    groups = torch.arange(50).repeat_interleave(4)
    found = chosen(*many, groups)
    assert found.standard_error == pytest.approx(wanted.standard_error)
    assert found.score_error == pytest.approx(wanted.score_error)
    assert chosen(*many).standard_error < 0.6 * wanted.standard_error


def test_the_error_of_a_choice_among_ragged_groups_is_that_of_a_loop():
    groups = ragged(9, groups=15)
    gains, right, after = scored(len(groups), 3)
    found = chosen(gains, right, after, torch.from_numpy(groups))
    mean, n = float(gains.mean()), len(groups)
    rests = [sum(float(gains[i]) - mean for i in np.flatnonzero(groups == k)) for k in range(15)]
    assert found.standard_error == pytest.approx(math.sqrt(sum(r * r for r in rests) * 15 / 14) / n)


# Near-copies that nobody declared.


@pytest.mark.parametrize("width", [4, 8, 32])
@pytest.mark.parametrize(("bases", "copies", "jitter"), [(100, 2, 0.01), (40, 5, 0.05), (20, 10, 0.2)])
def test_near_copies_in_other_folds_are_found(width, bases, copies, jitter):
    generator = np.random.default_rng(0)
    x = np.repeat(generator.normal(size=(bases, width)), copies, 0)
    x = x + jitter * generator.normal(size=x.shape)
    y, g = np.repeat(generator.integers(0, 4, bases), copies), np.repeat(np.arange(bases), copies)
    every = np.arange(len(x))
    found = near_copies(torch.from_numpy(x), y, every, generator.permutation(len(x)) % 5)
    assert len(found) >= 0.15 * len(x)
    together = near_copies(torch.from_numpy(x), y, every, g % 5)
    assert len(together) < 0.05 * len(x)  # where they stand together, they are no leak
    scaled = torch.from_numpy(x * np.geomspace(1e-3, 1e3, width))
    assert near_copies(scaled, y, every, generator.permutation(len(x)) % 5).size >= 0.15 * len(x)


@pytest.mark.parametrize("width", [1, 2, 8, 64])
def test_independent_points_are_no_near_copies(width):
    for seed in range(20):
        generator = np.random.default_rng(seed)
        x, y = generator.normal(size=(150, width)), generator.integers(0, 3, 150)
        assert len(near_copies(torch.from_numpy(x), y, np.arange(150), generator.permutation(150) % 5)) < 8


def test_points_of_no_spread_are_no_near_copies():
    y, every = np.arange(60) % 2, np.arange(60)
    for x in (torch.zeros(60, 3), torch.ones(60, 0), np.repeat((every % 3 == 0)[:, None], 2, 1) * 1.0):
        assert len(near_copies(torch.as_tensor(x), y, every, every % 5)) == 0


@pytest.mark.slow
def test_no_verdict_improved_on_near_copies_without_a_word():
    x, y, _ = copied(40, 5, 0.05, 0)
    found = verifix.prove(net(), (x, y), recipe="refit", **PROOF, verified_from="unseen")
    assert found.comparison.p_better < 1e-4
    assert found.verdict == "not proven"
    assert "seem to have near-copies" in found.comparison.doubt
    assert "groups=" in found.summary()
    assert found.as_dict()["comparison"]["doubt"] == found.comparison.doubt
    alone = verifix.prove(net(), (x, y), recipe="refit", groups=range(200), **PROOF, verified_from="unseen")
    assert (alone.verdict, alone.comparison.doubt) == ("improved", None)  # who says so is believed


def test_near_copies_of_verified_samples_in_the_test_set_or_the_other_half_are_found():
    x, y, g = copied(100, 2, 0.05, 1)
    verified, test = read_samples((x[::2], y[::2])), read_samples((x[1::2], y[1::2]))
    fixed = verifix.correct(net(), verified, alpha=10.0, **QUIET)
    assert measured("test", net(), fixed, test, range(100), used=verified).comparison.doubt is not None
    fresh = read_samples(copied(100, 1, 0.0, 9)[:2])
    assert measured("test", net(), fixed, fresh, range(100), used=verified).comparison.doubt is None
    frames = read_samples(copied(25, 4, 0.05, 3)[:2])  # of each other, and of no verified sample
    apart = read_samples(copied(100, 1, 0.0, 9)[:2])
    assert measured("test", net(), fixed, frames, range(100), used=apart).comparison.doubt is not None
    both = read_samples((x, y))
    correcting, proving = halves(both, 0)
    found = measured("split", net(), fixed, both, proving, used=both.subset(correcting))
    assert found.comparison.doubt is not None
    declared = read_samples((x, y), groups=g)
    correcting, proving = halves(declared, 0)
    found = measured("split", net(), fixed, declared, proving, used=declared.subset(correcting))
    assert found.comparison.doubt is None
    assert found.comparison.groups == len(proving) // 2


def test_near_copies_of_tokens_are_looked_for_among_logits():
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = nn.Embedding(50, 16), nn.Linear(16, 6)

        def forward(self, ids):
            return self.head(self.table(ids).tanh().mean(1))

    ids = torch.randint(50, (60, 20), generator=generator)
    near = ids.repeat_interleave(3, 0)
    near[torch.arange(180), torch.randint(20, (180,), generator=generator)] = 7
    y = torch.randint(3, (60,), generator=generator)
    model = Words().eval()
    copies = verifix.prove(model, (near, y.repeat_interleave(3)), alpha=10.0, **PROOF, verified_from="unseen")
    assert copies.comparison.doubt is not None
    fresh = torch.randint(50, (180, 20), generator=generator)
    apart = verifix.prove(
        model, (fresh, torch.randint(3, (180,), generator=generator)), alpha=10.0, **PROOF, verified_from="unseen"
    )
    assert apart.comparison.doubt is None


def recorded(name: str) -> dict:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))


def test_the_figures_of_the_manual_are_those_that_were_measured():
    page = " ".join((ROOT / "docs" / "proof.md").read_text(encoding="utf-8").split())
    measured, near = recorded("proof_simulation"), recorded("near_copies")
    for row in measured["copies"]:
        given = f"{row['inputs']} × {row['each']} | {row['jitter']:g} | {'yes' if row['declared'] else 'no'}"
        rates = f"{row['accepted']:.1f}% | {row['harmful']:.1f}% | {row['doubted']:.0f}%"
        alone = f"{row['accepted_but_for_the_doubt']:.1f}%"
        assert f"| {given} | `{row['recipe']}` | {row['runs']} | {rates} | {alone} |" in page
        assert row["accepted"] <= 2.5 + 2 * math.sqrt(2.5 * 97.5 / row["runs"])
    assert f"accepted at most {max(row['accepted'] for row in measured['hard_groups']):g}%." in page
    for words, name in (
        ("one look accepts at most {}", "one_look"),
        ("the two looks together up to {}", "two_looks"),
        ("With this second test, up to {}", "new_samples_alone"),
        ("both times, and up to {}", "two_at_half"),
    ):
        assert words.format(f"{max(row[f'{name}_accepted'] for row in measured['second_look']):.1f}%") in page
    spoken = max(row["spoken"] for row in near["independent"])
    assert f"{len(near['independent'])} rows of 100 sets) it spoke in at most {spoken:.0f}% of the sets" in page
    for rows in zip(*[iter(near["near_copies"])] * 3, strict=True):
        rates = " | ".join(f"{row['spoken']:.0f}%" for row in rows)
        assert f"| {rows[0]['width']} | {rows[0]['inputs']} × {rows[0]['copies']} | {rates} |" in page


def test_the_rates_of_the_default_recipe_stand_where_they_are_needed():
    (null,), (cover,) = (
        recorded("proof_simulation")["auto_without_meaning"],
        recorded("proof_simulation")["auto_coverage"],
    )
    rate = f"{null['changed']:g}% of"
    for path in ("README.md", "docs/proof.md", "docs/stages.md"):
        assert rate in " ".join((ROOT / path).read_text(encoding="utf-8").split())
    page = " ".join((ROOT / "docs" / "proof.md").read_text(encoding="utf-8").split())
    assert f"With the proof, {null['written_with_the_proof']:g}% were written" in page
    assert f"on 4,000 further points in {cover['covers_the_five']:.0f}% of the runs" in page
    assert f"from all 100 samples in {cover['covers_the_written']:.0f}%" in page
    assert f"were {cover['gain']:+.1f}" in page or f"was {cover['gain']:+.1f}" in page


def test_of_large_classes_some_samples_are_looked_at_among_all(monkeypatch):
    generator = np.random.default_rng(0)
    x = np.repeat(generator.normal(size=(150, 8)), 2, axis=0)
    x += 0.01 * generator.normal(size=x.shape)
    y, every = np.repeat(np.arange(150) % 2, 2), np.arange(300)
    sides = np.arange(300) % 2  # no copy is on the side of the other
    everything = near_copies(torch.from_numpy(x), y, every, sides)
    assert len(everything) == 300
    monkeypatch.setattr("verifix.evaluation.near_copies.LOOKED_AT", 40)
    some = near_copies(torch.from_numpy(x), y, every, sides)
    assert len(some) == 80
    assert set(some) < set(everything)
    data = torch.from_numpy(x).float(), torch.from_numpy(y)
    found = verifix.prove(net(), data, alpha=10.0, **PROOF, verified_from="unseen")
    assert " of the 80 samples that were looked at seem to have near-copies" in found.comparison.doubt
