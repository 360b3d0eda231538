"""`verifix.compare` and `verifix compare`, against sums and loops that are slow and obvious."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.test_cli import MODEL, images, run, write_parquet
from verifix import DataError, UsageError, class_weights, compare
from verifix.evaluation.power import mcnemar_power, samples_needed
from verifix.evaluation.significance import Outcomes, gain_interval, mcnemar, p_values, strata_of
from verifix.io.data.prediction_files import read_predictions
from verifix.io.options import DataOptions

K = 4


def answers(n: int, seed: int, right: float = 0.6, classes: int = K) -> tuple[np.ndarray, np.ndarray]:
    """Logits of which about a share `right` is right, and labels."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes, n)
    aim = np.where(generator.random(n) < right, labels, (labels + 1) % classes)
    logits = generator.normal(0, 1, (n, classes))
    logits[np.arange(n), aim] += 3
    return logits, labels


def changed(logits: np.ndarray, share: float, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.where(generator.random(len(logits))[:, None] < share, generator.permuted(logits, axis=1), logits)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    logits, labels = answers(200, 1)
    return logits, changed(logits, 0.3, 2), labels


def outcomes(fixed: int, broken: int, n: int) -> Outcomes:
    d = np.array([1] * fixed + [-1] * broken + [0] * (n - fixed - broken))
    return Outcomes(d, None, np.zeros(n, np.int64))


def coin_tail(wins: int, tosses: int) -> float:
    return sum(math.comb(tosses, k) for k in range(wins, tosses + 1)) / 2**tosses


# The measures, each by a loop.


def softmax(row: np.ndarray) -> list[float]:
    powers = [math.exp(x - max(row)) for x in row]
    return [x / sum(powers) for x in powers]


def ece_by_a_loop(logits, labels, weights) -> float:
    total = 0.0
    for i in range(15):
        rows = []
        for row, label, weight in zip(logits, labels, weights, strict=True):
            p = softmax(row)
            if i / 15 <= max(p) < (i + 1) / 15 or (i == 14 and max(p) >= 1):
                rows.append((max(p), p.index(max(p)) == label, weight))
        total += abs(sum(w * (right - p) for p, right, w in rows))
    return total / sum(weights)


def balanced_by_a_loop(predicted, labels, weights) -> float:
    recalls = []
    for c in sorted(set(labels)):
        rows = [(p == c, w) for p, y, w in zip(predicted, labels, weights, strict=True) if y == c]
        recalls.append(sum(r * w for r, w in rows) / sum(w for _, w in rows))
    return 100 * sum(recalls) / len(recalls)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_measures_are_those_of_a_loop(pair, weighted):
    before, after, labels = pair
    weights = np.random.default_rng(3).uniform(0.1, 3, len(labels)) if weighted else np.ones(len(labels))
    found = compare(before, after, labels, weights=weights)
    assert found.weighted == weighted
    for logits, measures in ((before, found.before), (after, found.after)):
        predicted = [max(range(K), key=lambda c, row=row: row[c]) for row in logits]
        right = [p == y for p, y in zip(predicted, labels, strict=True)]
        losses = [-math.log(softmax(row)[y]) for row, y in zip(logits, labels, strict=True)]
        total = sum(weights)
        assert measures.accuracy == pytest.approx(100 * sum(weights * right) / total, abs=1e-9)
        assert measures.cross_entropy == pytest.approx(sum(weights * losses) / total, abs=1e-9)
        assert measures.balanced_accuracy == pytest.approx(balanced_by_a_loop(predicted, labels, weights), abs=1e-9)
        assert measures.calibration_error == pytest.approx(ece_by_a_loop(logits, labels, weights), abs=1e-9)


def test_the_calibration_error_is_that_of_torchmetrics(pair, vision):
    from torchmetrics.functional.classification import multiclass_calibration_error

    before, after, labels = pair
    p = torch.from_numpy(before).softmax(dim=1)
    wanted = multiclass_calibration_error(p, torch.from_numpy(labels), K, 15)
    assert compare(before, after, labels).before.calibration_error == pytest.approx(float(wanted), abs=1e-6)


def test_confusion_flips_and_classes_are_those_of_a_loop(pair):
    before, after, labels = pair
    found = compare(before, after, labels)
    confusion = [[0] * K for _ in range(K)]
    fixed, broken, differ = [0] * K, [0] * K, 0
    for row_a, row_b, y in zip(before, after, labels, strict=True):
        a, b = int(row_a.argmax()), int(row_b.argmax())
        confusion[y][a] += 1
        fixed[y] += a != y == b
        broken[y] += a == y != b
        differ += a != b
    assert found.confusion_before == confusion
    assert np.trace(found.confusion_after) == found.after.accuracy * 2
    assert (found.fixed, found.broken, found.changed) == (sum(fixed), sum(broken), differ)
    for c, row in enumerate(found.per_class):
        n = sum(confusion[c])
        assert (row.label, row.samples, row.fixed, row.broken) == (c, n, fixed[c], broken[c])
        assert row.before == pytest.approx(100 * confusion[c][c] / n)
        assert row.after == pytest.approx(row.before + 100 * (fixed[c] - broken[c]) / n)
    assert found.gain.estimate == pytest.approx(found.after.accuracy - found.before.accuracy)


def test_the_reliability_bins_add_up_to_the_calibration_error(pair):
    before, after, labels = pair
    before = before.copy()
    before[0] = [1000, 0, 0, 0]  # confidence 1, which belongs to the last bin
    found = compare(before, after, labels)
    bins = found.reliability_before
    assert [b.low for b in bins] == pytest.approx([i / 15 for i in range(15)])
    assert sum(b.samples for b in bins) == len(labels)
    assert all((b.confidence is None) == (b.samples == 0) for b in bins)
    filled = [b for b in bins if b.samples]
    assert all(b.low <= b.confidence <= b.high for b in filled)
    error = sum(b.samples * abs(b.accuracy - b.confidence) for b in filled) / len(labels)
    assert error == pytest.approx(found.before.calibration_error, abs=1e-9)
    assert error == pytest.approx(ece_by_a_loop(before, labels, np.ones(200)), abs=1e-9)


# The forms of answers.


def test_logits_probabilities_and_their_logarithms_are_the_same(pair):
    before, after, labels = pair
    found = compare(before, after, labels).as_dict()
    tensors = torch.tensor(before, requires_grad=True), torch.tensor(after)
    p = [x.detach().softmax(dim=1) for x in tensors]
    for form in (tensors, p, [x.log() for x in p], [x.tolist() for x in p]):
        again = compare(*form, torch.tensor(labels)).as_dict()
        for name in ("before", "after"):
            assert again[name] == pytest.approx(found[name], abs=1e-9)
        assert again["gain"] == pytest.approx(found["gain"])
        assert {k: v for k, v in again.items() if isinstance(v, (int, str))} == {
            k: v for k, v in found.items() if isinstance(v, (int, str))
        }


def test_one_logit_is_a_binary_question():
    generator = np.random.default_rng(0)
    z, labels = generator.normal(0, 2, (2, 60, 1)), generator.integers(0, 2, 60)
    z[0][:3] = 0.0  # exactly 0 predicts class 0
    one = compare(z[0], z[1], labels)
    two = compare(*(np.concatenate([np.zeros_like(x), x], axis=1) for x in z), labels)
    assert one == two
    assert one.classes == 2
    assert one.before.accuracy == pytest.approx(100 * np.mean((z[0][:, 0] > 0) == labels))
    losses = np.log1p(np.exp(np.where(labels == 1, -z[0][:, 0], z[0][:, 0])))
    assert one.before.cross_entropy == pytest.approx(losses.mean())


def test_predicted_classes_alone_give_what_needs_no_probabilities(pair):
    before, after, labels = pair
    full, bare = compare(before, after, labels), compare(before.argmax(1), after.argmax(1)[:, None], labels)
    unknown = {"cross_entropy", "calibration_error", "reliability_before", "reliability_after"}
    for key, value in bare.as_dict().items():
        wanted = full.as_dict()[key]
        if key in ("before", "after"):
            assert value == {k: None if k in unknown else v for k, v in wanted.items()}
        else:
            assert value == (None if key in unknown else wanted)
    assert "Cross-entropy" not in bare.summary()
    half = compare(before, after.argmax(1), labels)
    assert half.after.cross_entropy is None
    assert half.before == full.before


def test_a_sure_and_wrong_answer_has_a_finite_loss():
    found = compare([[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.25, 0.75]], [1, 1])
    assert found.before.cross_entropy == pytest.approx((-math.log(2**-52) + math.log(2)) / 2, rel=1e-3)


def test_the_plain_data_is_json_and_has_the_documented_keys(pair):
    data = compare(*pair).as_dict()
    assert json.loads(json.dumps(data, allow_nan=False)) == data
    assert set(data) == {
        *("samples", "classes", "weighted", "before", "after", "gain", "fixed", "broken", "changed", "p_better"),
        *("p_worse", "threshold", "verdict", "samples_needed", "per_class", "confusion_before", "confusion_after"),
        *("reliability_before", "reliability_after", "outputs", "groups", "doubt", "class_names"),
    }
    assert set(data["gain"]) == {"estimate", "low", "high", "level"}
    assert set(data["per_class"][0]) == {"class", "samples", "before", "after", "fixed", "broken"}
    assert set(data["reliability_after"][0]) == {"low", "high", "samples", "confidence", "accuracy"}


def test_above_a_hundred_classes_there_is_no_confusion_matrix():
    labels = np.arange(202) % 101
    found = compare(labels, labels, labels)
    assert found.confusion_before is None
    assert len(found.per_class) == 101
    assert compare(labels % 100, labels % 100, labels % 100).confusion_after is not None


# The evidence.


@pytest.mark.parametrize(("fixed", "broken"), [(0, 0), (5, 0), (6, 0), (10, 2), (2, 10), (65, 35), (400, 350)])
def test_mcnemar_is_a_sum_of_binomials(fixed, broken):
    tosses = fixed + broken
    assert mcnemar(fixed, broken) == pytest.approx(coin_tail(fixed, tosses), rel=1e-9)
    better, worse = p_values(outcomes(fixed, broken, 1000), 0)
    assert (better, worse) == pytest.approx((coin_tail(fixed, tosses), coin_tail(broken, tosses)), rel=1e-9)


def test_the_verdict_is_that_of_mcnemar():
    labels = np.zeros(50, np.int64)
    wrong = (np.arange(50) < 6).astype(np.int64)
    better, worse, little = compare(wrong, labels, labels), compare(labels, wrong, labels), wrong * (np.arange(50) > 0)
    assert (better.verdict, better.samples_needed) == ("improved", None)
    assert better.p_better == pytest.approx(2**-6)
    assert (worse.verdict, worse.samples_needed) == ("harmful", None)
    five = compare(little, labels, labels)
    assert five.p_better == pytest.approx(2**-5)
    assert (five.verdict, five.gain.estimate) == ("not proven", pytest.approx(10.0))
    assert five.samples_needed > 50
    same = compare(wrong, wrong, labels)
    assert (same.verdict, same.samples_needed, same.p_better, same.p_worse) == ("not proven", None, 1.0, 1.0)


def power_by_simulation(n: int, wins: float, losses: float, runs: int) -> float:
    counts = np.random.default_rng(0).multinomial(n, [wins, losses, 1 - wins - losses], size=runs)
    decided = {}
    for b, c, _ in counts.tolist():
        if (b, c) not in decided:
            decided[b, c] = coin_tail(b, b + c) < 0.025
    return float(np.mean([decided[b, c] for b, c, _ in counts.tolist()]))


@pytest.mark.parametrize(("n", "wins", "losses"), [(1000, 0.065, 0.035), (60, 0.15, 0.02), (300, 0.03, 0.03)])
def test_the_power_is_that_of_a_simulation(n, wins, losses):
    assert mcnemar_power(n, wins, losses) == pytest.approx(power_by_simulation(n, wins, losses, 4000), abs=0.025)


def power_by_sums(n: int, wins: float, losses: float) -> float:
    total = 0.0
    for m in range(n + 1):
        some = math.comb(n, m) * (wins + losses) ** m * (1 - wins - losses) ** (n - m)
        share = wins / (wins + losses)
        enough = (k for k in range(m + 1) if coin_tail(k, m) < 0.025)
        total += some * sum(math.comb(m, k) * share**k * (1 - share) ** (m - k) for k in enough)
    return total


def test_the_power_is_a_double_sum_of_binomials():
    assert mcnemar_power(60, 0.15, 0.02) == pytest.approx(power_by_sums(60, 0.15, 0.02), rel=1e-9)


@pytest.mark.parametrize(("fixed", "broken", "n"), [(5, 2, 60), (2, 5, 60), (5, 0, 5), (30, 25, 400)])
def test_the_samples_needed_are_the_first_with_enough_power(fixed, broken, n):
    needed = samples_needed(outcomes(fixed, broken, n))
    wins, losses = max(fixed, broken) / n, min(fixed, broken) / n
    assert needed > n
    assert mcnemar_power(needed, wins, losses) >= 0.8
    assert mcnemar_power(needed - 1, wins, losses) < 0.8 or needed == n + 1


def test_a_tiny_gain_needs_a_number_that_is_found_quickly():
    assert 5e7 < samples_needed(outcomes(501, 500, 10_000)) < 1e8


@pytest.mark.slow
@pytest.mark.parametrize(("truth", "changes", "n"), [((0.08, 0.05), 0.13, 200), ((0.05, 0.05), 0.1, 400)])
def test_the_interval_covers_the_truth(truth, changes, n):
    generator, covered = np.random.default_rng(5), 0
    for run_number in range(150):
        b, c, _ = generator.multinomial(n, [*truth, 1 - changes])
        interval = gain_interval(outcomes(b, c, n), run_number)
        covered += interval.low <= 100 * (truth[0] - truth[1]) <= interval.high
    assert 0.90 <= covered / 150 <= 0.99


def test_the_interval_of_no_change_is_not_of_no_width():
    interval = gain_interval(outcomes(0, 0, 50), 0)
    most = 100 * (1 - 0.025 ** (1 / 50))
    assert (interval.low, interval.estimate, interval.high) == pytest.approx((-most, 0, most))
    all_fixed = gain_interval(outcomes(50, 0, 50), 0)
    assert (all_fixed.low, all_fixed.high) == pytest.approx((100 - 2 * most, 100))


def test_the_seed_settles_the_interval(pair):
    assert compare(*pair, seed=3) == compare(*pair, seed=3)
    assert compare(*pair, seed=3).gain != compare(*pair, seed=4).gain


# Weights.


def test_equal_weights_are_no_weights(pair):
    labels = pair[2]
    shares = np.bincount(labels) / len(labels)
    for weights in (np.full(200, 0.1), torch.full((200,), 7), class_weights(labels, shares)):
        assert compare(*pair, weights=weights) == compare(*pair)


def test_class_weights_bring_back_the_shares():
    labels = np.array([0, 0, 0, 1, 2, 2])
    weights = class_weights(labels, [0.5, 0.3, 0.2])
    assert weights == pytest.approx([1, 1, 1, 1.8, 0.6, 0.6])
    assert class_weights(torch.tensor(labels), {1: 0.3, 0: 0.5, 2: 0.2}) == pytest.approx(weights)
    assert class_weights(labels, [0.5, 0.5, 0.0])[4:] == pytest.approx([0, 0])
    right = np.array([0, 0, 1, 1, 2, 0])
    found = compare(labels, right, labels, weights=weights)
    assert found.after.accuracy == pytest.approx(100 * (0.5 * 2 / 3 + 0.3 + 0.2 / 2))
    assert found.gain.estimate == pytest.approx(found.after.accuracy - 100)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.5, 0.3, 0.1, 0.1], "class 3 has the share 0.1 and no sample"),
        ([0.5, 0.5], "class 2 has 2 samples and no share"),
        ([0.5, 0.3, 0.1], "sum to 0.9"),
        ([0.5, 0.7, -0.2], "share -0.2"),
        ([0.5, 0.3, math.nan], "share nan"),
        ({"cat": 1.0}, "'cat'"),
    ],
)
def test_shares_that_cannot_be_used_are_refused(shares, message):
    with pytest.raises(DataError, match=message):
        class_weights([0, 0, 0, 1, 2, 2], shares)


def p_by_hand(d: list[np.ndarray], weights: list[float]) -> tuple[float, float]:
    """Both parts of the weighted test for two classes, written out."""
    from scipy.stats import t

    n = sum(map(len, d))
    rate = (sum(np.count_nonzero(values) for values in d) + 1) / (n + 1)
    terms, third = [max(weights) ** 2], -(max(weights) ** 3)
    for w, values in zip(weights, d, strict=True):
        m = len(values)
        terms.append((sum((w * (x - values.mean())) ** 2 for x in values) + 2 * rate * w**2) * m / (m + 1))
        third += sum((w * (x - values.mean())) ** 3 for x in values)
    total = sum(terms)
    freedom = total**2 / (terms[0] ** 2 + sum(v**2 / (len(x) - 1) for v, x in zip(terms[1:], d, strict=True)))
    statistic = sum(w * values.sum() for w, values in zip(weights, d, strict=True)) / math.sqrt(total)
    skewness = min(third / total**1.5, 0)
    # Hall (1992): T + γT²/3 + γ²T³/27 + γ/6
    statistic += skewness * statistic**2 / 3 + skewness**2 * statistic**3 / 27 + skewness / 6
    sizes = np.concatenate([np.full(np.count_nonzero(x), w) for w, x in zip(weights, d, strict=True)])
    sums = np.random.default_rng(1).choice([-1, 1], (40_000, len(sizes))) @ sizes
    seen = sum(w * values.sum() for w, values in zip(weights, d, strict=True))
    return float(t.sf(statistic, freedom)), float(np.mean(sums >= seen - 1e-9))


def flipped(fixed: int, broken: int, n: int) -> np.ndarray:
    return np.array([1] * fixed + [-1] * broken + [0] * (n - fixed - broken))


@pytest.mark.parametrize(
    ("first", "second", "weights", "larger"),
    [
        ((34, 0, 90), (0, 2, 10), [5 / 9, 5.0], "t"),  # a heavy loss that was rarely seen
        ((2, 0, 200), (1, 0, 200), [1.2, 0.8], "signs"),  # few flips
    ],
)
def test_the_weighted_test_is_the_larger_one_of_two(first, second, weights, larger):
    d = [flipped(*first), flipped(*second)]
    by_t, by_signs = p_by_hand(d, weights)
    assert (by_t > by_signs + 0.01) if larger == "t" else (by_signs > by_t + 0.01)
    strata = np.repeat([0, 1], [len(x) for x in d])
    seen = Outcomes(np.concatenate(d), np.repeat(weights, [len(x) for x in d]), strata)
    better, worse = p_values(seen, 0)
    assert better == pytest.approx(max(by_t, by_signs), abs=1e-9 if larger == "t" else 0.005)
    assert worse > 0.8


NULLS = {
    "both classes alike": ([0.5, 0.5], [0.9, 0.1], [(0.05, 0.05), (0.05, 0.05)]),
    "one gains, the heavy one loses": ([0.8, 0.2], [0.4, 0.6], [(0.15, 0.0), (0.0, 0.1)]),
    "the rare one gains, the other loses": ([0.5, 0.5], [0.95, 0.05], [(0.0, 0.01), (0.19, 0.0)]),
    "ten classes": ([0.1] * 10, [0.3, 0.2, *[0.0625] * 8], [(0.06, 0.06)] * 10),
}


@pytest.mark.slow
@pytest.mark.parametrize("n", [50, 300])
@pytest.mark.parametrize("case", NULLS)
def test_the_weighted_test_errs_in_one_run_of_forty_at_most(case, n):
    drawn, shares, rates = NULLS[case]
    assert sum(s * (up - down) for s, (up, down) in zip(shares, rates, strict=True)) == pytest.approx(0)
    generator, accepted, runs = np.random.default_rng(7), 0, 100
    for i in range(runs):
        parts, labels = [], []
        for label, (part, (up, down)) in enumerate(zip(drawn, rates, strict=True)):
            count = round(part * n)
            parts.append(generator.choice([1, -1, 0], count, p=[up, down, 1 - up - down]))
            labels += [label] * count
        weights = class_weights(labels, shares)
        seen = Outcomes(np.concatenate(parts), weights, np.array(labels))
        accepted += seen.gain > 0 and p_values(seen, i)[0] < 0.025
    assert accepted <= 7, f"{accepted} of {runs}"  # at 2.5% there are 8 or more in 1 of 250 such tests


def test_weights_that_differ_within_a_class_are_one_stratum_and_never_too_sure(pair):
    labels = pair[2]
    weights = np.random.default_rng(0).uniform(0.5, 2, 200)
    assert not strata_of(labels, weights).any()
    assert (strata_of(labels, class_weights(labels, [0.4, 0.3, 0.2, 0.1])) == labels).all()
    found = compare(*pair, weights=weights)
    assert found.gain.low < found.gain.estimate < found.gain.high
    by_class = compare(*pair, weights=class_weights(labels, [0.4, 0.3, 0.2, 0.1]))
    assert by_class.verdict in ("improved", "not proven", "harmful")
    assert by_class.gain.low < by_class.gain.estimate < by_class.gain.high
    assert "weighted" in by_class.summary()


def test_a_class_of_one_sample_and_a_class_of_no_weight_are_no_trouble():
    labels = np.array([0] * 30 + [1] * 30 + [2])
    before, after = labels.copy(), labels.copy()
    before[:8], after[40:42] = 1, 0
    for shares in ([0.6, 0.3, 0.1], [0.7, 0.3, 0.0]):
        found = compare(before, after, labels, weights=class_weights(labels, shares))
        assert math.isfinite(found.p_better + found.gain.low + found.gain.high)
        json.dumps(found.as_dict(), allow_nan=False)


def test_more_weighted_samples_are_needed_when_few_were_seen():
    labels = np.repeat([0, 1], 50)
    before = labels.copy()
    before[:3] = 1
    found = compare(before, labels, labels, weights=class_weights(labels, [0.9, 0.1]))
    assert found.verdict == "not proven"
    assert found.samples_needed > 100
    assert "more verified samples would decide" in found.summary()


# What cannot be compared.

GOOD = [[1.0, 0.0], [0.0, 1.0], [2.0, 1.0]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"before": [[1.0, math.nan]] * 3}, "before has NaN or Inf in row 0"),
        ({"after": [[1.0, 0.0], [1.0, -math.inf], [0.0, 1.0]]}, "after has NaN or Inf in row 1"),
        ({"after": GOOD[:2]}, r"after has the shape \[2, 2\] for 3 labels"),
        ({"after": [[1.0, 0.0, 0.0]] * 3}, "before has 2 classes and after 3"),
        ({"before": [0.5, 0.2, 0.1]}, "one row of torch.float64"),
        ({"before": [[]] * 3}, "shape"),
        ({"before": "abc"}, "cannot be converted to numbers"),
        ({"before": [0, -1, 1]}, "before has class -1 for sample 1"),
        ({"before": [0, 2, 1]}, "before has class 2 for sample 1"),
        ({"before": np.ones((3, 2), bool)}, "torch.bool"),
        ({"labels": [0, 1, 2]}, "labels has class 2 for sample 2, but there are 2 classes"),
        ({"labels": [0, 1, -100]}, "labels has class -100 for sample 2"),
        ({"labels": [0.0, 1.5, 1.0]}, r"labels are torch.float64 of shape \[3\], and number 1 of them is 1\.5"),
        ({"labels": [[0], [1], [1]]}, "labels are torch.int64 of shape"),
        ({"labels": [1], "before": GOOD[:1], "after": GOOD[:1]}, "at least 2 samples"),
        ({"weights": [1, 2]}, "weights have the shape"),
        ({"weights": [1, -2, 1]}, "weight of sample 1 is -2.0"),
        ({"weights": [1, 1, math.inf]}, "weight of sample 2 is inf"),
        ({"weights": [0, 0, 0]}, "every weight is 0"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(changes, message):
    given = {"before": GOOD, "after": GOOD, "labels": [0, 1, 1]} | changes
    weights = given.pop("weights", None)
    with pytest.raises(DataError, match=message) as error:
        compare(*given.values(), weights=weights)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("seed", [-1, 0.5, True, 2**32])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(UsageError, match="seed is"):
        compare(GOOD, GOOD, [0, 1, 1], seed=seed)


def test_the_public_names_are_functions_even_when_the_command_has_been_imported():
    import verifix.cli.commands.compare

    assert callable(verifix.compare)
    assert verifix.compare is compare


# The command.


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Two models, samples, and what both models say in every form."""
    root = tmp_path_factory.mktemp("compared")
    (root / "net.py").write_text(MODEL)
    namespace: dict = {}
    exec(MODEL, namespace)
    torch.manual_seed(0)
    model = namespace["build"]()
    pixels, labels = images(90, 4)
    write_parquet(root / "data.parquet", pixels, labels)
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2) / 255).float()
    save_file(model.state_dict(), root / "a.safetensors")
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(40):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), torch.from_numpy(labels)).backward()
        optimizer.step()
    torch.save(model.state_dict(), root / "b.pt")
    np.save(root / "labels.npy", labels)
    np.save(root / "one.npy", np.array(1.0))
    np.savez(root / "data.npz", x=pixels, y=labels)
    (root / "labels.csv").write_text("label\n" + "\n".join(map(str, labels)) + "\n")
    names = np.array(["ant", "bee", "cow"])
    (root / "named.csv").write_text("name\n" + "\n".join(names[labels]) + "\n")
    for name, suffix in (("a", "safetensors"), ("b", "pt")):
        path = root / f"{name}.{suffix}"
        model.load_state_dict(load_file(path) if suffix == "safetensors" else torch.load(path, weights_only=True))
        with torch.no_grad():
            logits = model(x).double().numpy()
        np.save(root / f"{name}.npy", logits)
        np.savez(root / f"{name}.npz", other=labels, logits=logits)
        p = torch.from_numpy(logits).softmax(dim=1).numpy()
        pq.write_table(
            pa.table({n: p[:, i] for n, i in (("cow", 2), ("ant", 0), ("bee", 1))}), root / f"{name}.parquet"
        )
        lines = [",".join(map(repr, row)) for row in p.tolist()]
        (root / f"{name}.csv").write_text("first,second,third\n" + "\n".join(lines) + "\n")
        (root / f"{name}-classes.csv").write_text("class\n" + "\n".join(names[logits.argmax(1)]) + "\n")
    return root


def compared(files, capsys, before, after, data, *more) -> dict:
    code, text, err = run(["compare", files / before, files / after, "--data", files / data, *more, "--json"], capsys)
    assert code == 0, err
    return json.loads(text)


def test_checkpoints_and_all_files_of_predictions_give_the_same_comparison(files, capsys):
    model = ["--model", f"py:{files / 'net.py'}:build", "--no-progress", "--no-check-inputs"]
    found = compared(files, capsys, "a.safetensors", "b.pt", "data.parquet", *model)
    assert found["verdict"] == "improved"
    assert found["compared"]["before"] == str(files / "a.safetensors")
    assert "pixels from 0 to 1" in found["compared"]["preprocessing"]
    logits = [np.load(files / f"{name}.npy") for name in ("a", "b")]
    wanted = compare(*logits, np.load(files / "labels.npy")).as_dict()
    forms = [("npy", "labels.npy"), ("npz", "labels.csv"), ("csv", "data.npz"), ("csv", "data.parquet")]
    forms = [(ending, data, []) for ending, data in forms]
    forms.append(("parquet", "named.csv", ["--classes", "ant,bee,cow"]))
    results = [found, compared(files, capsys, "a.safetensors", "b.npy", "data.parquet", *model)]
    results += [compared(files, capsys, f"a.{e}", f"b.{e}", data, *more) for e, data, more in forms]
    for result in results:
        assert {key: result[key] for key in ("fixed", "broken", "changed", "p_better", "verdict")} == {
            key: wanted[key] for key in ("fixed", "broken", "changed", "p_better", "verdict")
        }
        for name in ("before", "after"):
            assert result[name] == pytest.approx(wanted[name], abs=1e-4)
        assert result["confusion_after"] == wanted["confusion_after"]
    bare = compared(files, capsys, "a-classes.csv", "b-classes.csv", "named.csv", "--classes", "ant,bee,cow")
    assert bare["confusion_after"] == wanted["confusion_after"]
    assert bare["before"]["cross_entropy"] is None


def test_the_text_begins_with_the_verdict_as_a_real_process(files):
    command = Path(sys.executable).with_name("verifix")
    argv = [command, "compare", files / "a.npy", files / "b.npy", "--data", files / "labels.csv"]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Improved: ")
    for words in ("95% interval", "fixed", "Balanced accuracy", "Cross-entropy", "Calibration error", "class 0: "):
        assert words in result.stdout
    argv = [command, "compare", files / "b.npy", files / "a.npy", "--data", files / "labels.csv"]
    assert subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False).stdout.startswith("Harmful: ")


def test_shares_and_weights_from_files(files, tmp_path, capsys):
    labels = np.load(files / "labels.npy")
    shares = tmp_path / "shares.txt"
    shares.write_text("bee=0.3\nant=0.6\ncow=0.1\n")
    weights = class_weights(labels, [0.6, 0.3, 0.1])
    np.save(tmp_path / "weights.npy", weights)
    (tmp_path / "weights.csv").write_text("weight\n" + "\n".join(map(repr, weights.tolist())) + "\n")
    wanted = compare(np.load(files / "a.npy"), np.load(files / "b.npy"), labels, weights=weights).as_dict()
    for more in (
        ["--class-shares", "0.6,0.3,0.1"],
        ["--class-shares", shares, "--classes", "ant,bee,cow"],
        ["--class-shares", "1=0.3,0=0.6,2=0.1"],
        ["--weights-file", tmp_path / "weights.npy"],
        ["--weights-file", tmp_path / "weights.csv"],
    ):
        found = compared(files, capsys, "a.npy", "b.npy", "labels.npy", *more)
        assert found["weighted"]
        assert found["before"] == pytest.approx(wanted["before"])
        assert found["p_better"] == pytest.approx(wanted["p_better"])


def test_class_columns_may_be_numbered_in_any_order(tmp_path, files, capsys):
    logits = np.load(files / "a.npy")
    lines = [",".join(map(repr, row)) for row in logits[:, [2, 0, 1]].tolist()]
    (tmp_path / "a.csv").write_text("2,0,1\n" + "\n".join(lines) + "\n")
    found = compared(files, capsys, files / "a.npy", tmp_path / "a.csv", "labels.npy")
    assert (found["changed"], found["p_better"]) == (0, 1.0)


HOSTILE = {
    "headerless.csv": ("0.25,0.75\n0.5,0.5\n", "must name the columns"),
    "column.csv": ("0\n1\n", "must name the columns"),
    "labelled.csv": ("a,b,label\n1,2,0\n", "column 'label', which is no class"),
    "words.csv": ("a,b\n1,two\n", "line 2 of .* has 'two' in column 'b'"),
    "ragged.csv": ("a,b\n1\n", "1 values for 2 columns"),
    "empty.csv": ("", "is empty"),
    "rowless.csv": ("a,b\n", "no row"),
    "nan.csv": ("a,b\n" + "1,nan\n" * 90, "NaN or Inf in row 0"),
    "short.csv": ("a,b,c\n1,2,3\n", r"shape \[1, 3\] for 90 labels"),
    "wide.csv": ("a,b\n" + "1,2\n" * 90, "before has 3 classes and after 2"),
    "sigmoid.csv": ("p\n" + "0.5\n" * 90, "one number per sample, from 0.5 to 0.5"),
    "broken.parquet": ("PAR1", "not a readable Parquet"),
    "broken.npy": ("\x93NUMPY", "not a readable numpy file"),
    "broken.npz": ("PK", "not a readable numpy file"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_file_of_predictions_that_cannot_be_read_is_named_in_one_line(name, files, tmp_path, capsys):
    content, message = HOSTILE[name]
    (tmp_path / name).write_text(content)
    code, text, err = run(["compare", files / "a.npy", tmp_path / name, "--data", files / "labels.npy"], capsys)
    assert (code, text, err.count("\n")) == (5, "", 1)
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(err)


def test_arrays_with_code_in_them_are_not_run(files, tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.array([print, None], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "b.npz", p=np.zeros((90, 3)), q=np.zeros((90, 3)))
    for name, message in (("a.npy", "not a readable numpy file"), ("b.npz", "p, q; one must be named logits")):
        code, _, err = run(["compare", files / "a.npy", tmp_path / name, "--data", files / "labels.npy"], capsys)
        assert code == 5
        assert message in err


@pytest.mark.parametrize(
    ("changes", "code", "message"),
    [
        (["a.safetensors", "b.pt", "labels.npy"], 2, "give its model with --model"),
        (["a.npy", "none.npy", "labels.npy"], 2, "does not exist"),
        (["a.npy", "b.npy", "none.csv"], 2, "does not exist"),
        (["a.npy", "b.npy", "labels.npy", "--class-shares", "0.5,0.5"], 5, "class 2 has 30 samples and no share"),
        (["a.npy", "b.npy", "labels.npy", "--class-shares", "a=b"], 2, "--class-shares has 'a=b'"),
        (["a.npy", "b.npy", "labels.npy", "--class-shares", "none.txt"], 2, "none.txt does not exist"),
        (["a.npy", "b.npy", "labels.npy", "--class-shares", "1", "--weights-file", "w.npy"], 2, "give one of them"),
        (["a.npy", "b.npy", "labels.npy", "--weights-file", "a.npy"], 5, "a.npy: weights have the shape"),
        (["a.npy", "b.npy", "labels.npy", "--weights-file", "one.npy"], 5, "one.npy: weights have the shape []"),
        (["a.npy", "b.npy", "one.npy"], 5, "labels are torch.float64 of shape []"),
        (["a.npy", "b.npy", "labels.npy", "--seed", "-1"], 2, "seed is -1"),
        (["a.npy", "b.npy", "named.csv"], 5, "give --classes"),
        (["a.npy", "b.npy"], 2, "--data"),
    ],
)
def test_what_the_command_cannot_use_is_one_line(changes, code, message, files, capsys, monkeypatch):
    monkeypatch.chdir(files)
    flags = ["--data"] if len(changes) > 2 else []
    found, text, err = run(["compare", *changes[:2], *flags, *changes[2:]], capsys)
    assert (found, text, err.count("\n")) == (code, "", 1)
    assert message in err


def test_the_figures_of_the_manual_are_those_that_were_measured():
    root = Path(__file__).resolve().parents[2]
    page = (root / "docs" / "proof.md").read_text(encoding="utf-8")
    measured = json.loads((root / "benchmarks" / "results" / "proof_simulation.json").read_text(encoding="utf-8"))
    for row in measured["random"]:
        cells = f"{row['accepted']:.1f}% | {row['gain']:+.2f} | {row['bias']:+.2f} | {row['covered']:.0f}%"
        naive = f"{row['naive_gain']:+.2f} | {row['naive_accepted']:.0f}%"
        assert f"| {row['truth']:+g} | {row['samples']:,} | {cells} | {naive} |" in page
    for row in measured["class_balanced"]:
        cells = f"{row['accepted']:.1f}% | {row['gain']:+.2f} | {row['bias']:+.2f} | {row['covered']:.0f}%"
        plain = f"{row['unweighted_gain']:+.2f} | {row['unweighted_accepted']:.1f}%"
        assert f"| {row['truth']:+g} | {row['samples']:,} | {cells} | {plain} |" in page
    worst = max(row["accepted"] for row in measured["hard_weights"])
    assert f"at most {worst:g}%" in " ".join(page.split())


def test_many_columns_of_parquet_are_read_as_one_by_one(tmp_path):
    table = pa.table({str(i): np.linspace(i, i + 1, 3) for i in range(500)})
    pq.write_table(table, tmp_path / "p.parquet")
    found = read_predictions(str(tmp_path / "p.parquet"), DataOptions())
    assert np.array_equal(found, np.stack([np.linspace(i, i + 1, 3) for i in range(500)], axis=1))
