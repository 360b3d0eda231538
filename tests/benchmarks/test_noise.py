"""Label noise has the rate, the matrix and the dependence on inputs that its kind says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.noise import (
    CIFAR10_GROUPS,
    CIFAR10_PAIRS,
    DIGIT_GROUPS,
    DIGIT_PAIRS,
    KINDS,
    instance_probabilities,
    noisy,
    realised,
)
from cleanlab.benchmarking.noise_generation import generate_noisy_labels

from verifix.errors import UsageError

CLASSES, EACH = 10, 40
LABELS = torch.arange(CLASSES * EACH) % CLASSES
INPUTS = torch.randn(CLASSES * EACH, 6, generator=torch.Generator().manual_seed(1))
GIVEN = (LABELS + (torch.arange(CLASSES * EACH) < 50)) % CLASSES


def made(kind, rate=0.3, seed=0, labels=LABELS, inputs=INPUTS):
    more = {"pairs": DIGIT_PAIRS, "groups": DIGIT_GROUPS, "given": GIVEN}
    return noisy(kind, inputs, labels, rate, CLASSES, seed, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_and_share_are_counts_of_the_labels(kind):
    noise = made(kind)
    counts = np.zeros((CLASSES, CLASSES))
    for true, given in zip(LABELS.tolist(), noise.labels.tolist(), strict=True):
        counts[true, given] += 1 / EACH
    assert np.allclose(noise.matrix, counts, rtol=0, atol=1e-12)
    assert noise.wrong == pytest.approx(1 - np.trace(counts) / CLASSES)
    assert noise.labels.dtype == torch.int64


@pytest.mark.parametrize("kind", KINDS[:4])
def test_a_seed_gives_its_own_labels_and_the_same_again(kind):
    assert torch.equal(made(kind).labels, made(kind).labels)
    assert not torch.equal(made(kind).labels, made(kind, seed=1).labels)
    assert torch.equal(made(kind, rate=0.0).labels, LABELS)


def test_true_labels_are_left_as_they_are():
    kept = LABELS.clone()
    for kind in KINDS:
        made(kind).labels[:] = 0
    assert torch.equal(kept, LABELS)
    assert GIVEN[1] == 2


@pytest.mark.parametrize(("rate", "count"), [(0.3, 120), (0.1234, 49)])
def test_symmetric_noise_makes_a_share_of_all_labels_wrong(rate, count):
    noise = made("symmetric", rate)
    assert int((noise.labels != LABELS).sum()) == count
    assert len({(a, b) for a, b in zip(LABELS.tolist(), noise.labels.tolist(), strict=True) if a != b}) > 35


def test_asymmetric_noise_flips_a_share_of_the_classes_with_a_partner():
    matrix = made("asymmetric", 0.3).matrix
    expected = torch.eye(CLASSES, dtype=torch.float64)
    for y, partner in {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}.items():
        expected[y, y], expected[y, partner] = 0.7, 0.3
    assert torch.allclose(matrix, expected, rtol=0, atol=1e-12)
    assert made("asymmetric", 0.3).wrong == pytest.approx(0.15)


def test_by_default_each_class_is_taken_for_the_next():
    shift = torch.eye(CLASSES, dtype=torch.float64).roll(1, 1)
    expected = 0.75 * torch.eye(CLASSES, dtype=torch.float64) + 0.25 * shift
    assert torch.allclose(noisy("asymmetric", None, LABELS, 0.25, CLASSES, 0).matrix, expected, rtol=0, atol=1e-12)


def test_hierarchical_noise_stays_in_the_group_and_is_even():
    matrix = made("hierarchical", 0.3).matrix
    for group in ((0, 6, 8, 9), (1, 4, 7), (2, 3, 5)):
        for y in group:
            outside = [k for k in range(CLASSES) if k not in group]
            others = [k for k in group if k != y]
            assert float(matrix[y, outside].sum()) == 0
            assert matrix[y, y] == pytest.approx(0.7)
            assert float(matrix[y, others].max() - matrix[y, others].min()) <= 1 / EACH + 1e-12


@pytest.mark.parametrize("kind", ["asymmetric", "hierarchical"])
def test_where_counts_are_whole_they_are_those_of_cleanlab(kind):
    rate = 0.3 if kind == "asymmetric" else 0.45  # 12 into one; 18 into two or three
    ours = made(kind, rate)
    nudged = np.where(np.eye(CLASSES), ours.matrix.T.numpy(), ours.matrix.T.numpy() + 1e-9)  # it rounds down
    theirs = generate_noisy_labels(LABELS.numpy(), nudged)
    assert torch.equal(realised(LABELS, torch.from_numpy(theirs), CLASSES).matrix, ours.matrix)
    assert ours.wrong == pytest.approx(rate / 2 if kind == "asymmetric" else rate)


def test_the_usual_pairs_and_groups_of_cifar10():
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    pairs = {names[a]: names[b] for a, b in CIFAR10_PAIRS.items()}
    assert pairs == {"truck": "automobile", "bird": "airplane", "deer": "horse", "cat": "dog", "dog": "cat"}
    assert {names[y] for y in CIFAR10_GROUPS[1]} == {"airplane", "automobile", "ship", "truck"}


def test_two_points_have_the_probabilities_of_the_paper():
    """By hand: x₁·w₀ = (5, ln 2, 0) and x₂·w₂ = (ln 9, 0, 7); the true class leaves the softmax."""
    projections = np.zeros((3, 2, 3))
    projections[0, 0] = 5, np.log(2), 0
    projections[2, 1] = np.log(3), 0, 3.5
    inputs = np.array([[1.0, 0.0], [0.0, 2.0]])
    found = instance_probabilities(inputs, np.array([0, 2]), np.array([0.3, 0.5]), projections)
    assert np.allclose(found, [[0.7, 0.2, 0.1], [0.45, 0.05, 0.5]], rtol=0, atol=1e-12)


def test_instance_noise_has_about_its_rate():
    labels, inputs = LABELS.repeat(20), torch.randn(8000, 6, generator=torch.Generator().manual_seed(2))
    assert made("instance", 0.3, labels=labels, inputs=inputs).wrong == pytest.approx(0.3, abs=0.02)
    # of N(0.1, 0.1²) on [0, 1] the mean is 0.1 + 0.1 φ(1) / Φ(1)
    assert made("instance", 0.1, labels=labels, inputs=inputs).wrong == pytest.approx(0.1288, abs=0.015)


def neighbours_agree(inputs, labels, given):
    """Share of wrong labels whose nearest wrong neighbour of the same class has the same one, and by chance."""
    same, chance = [], []
    for y in labels.unique():
        wrong = ((labels == y) & (given != y)).nonzero().flatten()
        distance = torch.cdist(inputs[wrong], inputs[wrong]).fill_diagonal_(torch.inf)
        same.append((given[wrong] == given[wrong][distance.argmin(1)]).double().mean())
        shares = torch.bincount(given[wrong]).double() / len(wrong)
        chance.append((shares**2).sum())
    return float(torch.stack(same).mean()), float(torch.stack(chance).mean())


def test_neighbours_of_one_class_are_taken_for_the_same_class_by_instance_noise_only():
    labels = LABELS.repeat(5)
    inputs = 3 * torch.randn(2000, 3, generator=torch.Generator().manual_seed(3))
    same, chance = neighbours_agree(inputs, labels, made("instance", labels=labels, inputs=inputs).labels)
    assert same > chance + 0.2
    same, chance = neighbours_agree(inputs, labels, made("symmetric", labels=labels, inputs=inputs).labels)
    assert abs(same - chance) < 0.05


def test_with_two_classes_neighbours_are_wrong_together():
    labels = torch.arange(4000) % 2
    inputs = torch.randn(4000, 2, generator=torch.Generator().manual_seed(4))
    wrong = noisy("instance", inputs, labels, 0.25, 2, 0).labels != labels
    assert float(wrong.double().mean()) == pytest.approx(0.25, abs=0.02)
    for y in (0, 1):
        own, flips = inputs[labels == y], wrong[labels == y].float()
        slope = torch.linalg.lstsq(own, flips - flips.mean()).solution
        along = (own @ slope).argsort()
        assert float(flips[along[1500:]].mean() - flips[along[:500]].mean()) > 0.15


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("odd", {}, "must be one of"),
        ("human", {}, "labels that people gave"),
        ("instance", {}, "needs the inputs"),
        ("hierarchical", {"groups": ((0, 1), (2,))}, "each of the 10 classes stands once"),
        ("symmetric", {"rate": 1.0}, "rate is 1.0"),
    ],
)
def test_what_cannot_be_made_is_refused(kind, settings, words):
    rate = settings.pop("rate", 0.3)
    with pytest.raises(UsageError, match=words):
        noisy(kind, None, LABELS, rate, CLASSES, 0, **settings)
