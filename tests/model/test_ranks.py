"""Several processes find what one finds; real processes, started by torchrun, connected by gloo."""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch

from tests.rank_cases import CASES, EXTRA, SHORT, chosen, found, launched, proof, trusted
from verifix.model.ranks import share

found_alone = cache(found)

NAMES = {2: (*CASES, *EXTRA), 4: SHORT}
"""What so many processes run."""

BY_TWO, BY_ALL = (pytest.mark.parametrize("together", counts, indirect=True) for counts in ([2], [2, 4]))


@pytest.fixture(scope="module")
def found_by(tmp_path_factory):
    """Start so many processes, once for all tests, and return what each has found."""

    @cache
    def run(count):
        folder = tmp_path_factory.mktemp("found")
        result = launched(count, "tests.rank_cases", str(folder), *NAMES[count])
        assert result.returncode == 0, result.stderr
        return [torch.load(folder / f"{count}.{rank}.pt", weights_only=False) for rank in range(count)]

    return run


@pytest.fixture
def together(request, found_by):
    return found_by(request.param)


@pytest.mark.parametrize(
    ("together", "name"),
    [(count, name) for count, names in NAMES.items() for name in names if name in CASES],
    indirect=["together"],
)
def test_processes_that_share_a_correction_find_what_one_finds(together, name):
    want, (first, *others) = found_alone(name), [own[name] for own in together]
    assert first["corrected"].keys() == want["corrected"].keys() != set()
    for parameter, value in want["corrected"].items():
        exact = 1e-9 if "refit" in want["strengths"] else 1e-10  # with a small λ, L-BFGS stops within this
        most = exact if value.dtype == torch.float64 else 1e-7 * max(1.0, want["strengths"].get("project") or 1.0)
        assert (first["corrected"][parameter] - value).norm() <= most * value.norm(), parameter
        assert all(torch.equal(first["corrected"][parameter], other["corrected"][parameter]) for other in others)
    for other in (first, *others):
        assert {key: other[key] for key in ("strengths", "provenance", "layers")} == {
            key: want[key] for key in ("strengths", "provenance", "layers")
        }


@BY_TWO
def test_scores_of_trust_are_those_of_one_process_to_the_bit(together):
    for method, (indices, scores) in trusted().items():
        for own in together:
            assert own["trusted"][method][0] == indices
            assert torch.equal(own["trusted"][method][1], scores)


@BY_TWO
def test_samples_to_verify_are_those_of_one_process(together):
    for own in together:
        assert own["chosen"] == chosen()


@BY_TWO
def test_a_nested_proof_is_that_of_one_process(together):
    want = proof()
    for own in together:
        assert own["proof"]["folds"] == want["folds"]
        torch.testing.assert_close(own["proof"]["before"], want["before"], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(own["proof"]["after"], want["after"], rtol=1e-9, atol=1e-9)


@BY_ALL
def test_every_sample_and_every_fold_is_the_work_of_one_process(together):
    assert sorted(i for own in together for i in own["work"]["samples"]) == list(range(120))
    assert all(own["work"]["samples"] for own in together)
    fits = [own["work"]["fits"][10.0] for own in together]  # a strength that stays in the race
    assert sum(fits) == 5
    assert max(fits) <= 5 // len(together) + 1
    of_two = [own["work"]["fits with two folds"] for own in together]
    assert all(of_two)  # where there are more processes than folds, they share the strengths of one
    assert sum(fits[10.0] for fits in of_two) == 2


@BY_TWO
def test_processes_that_were_given_other_things_are_refused_alike(together):
    first, second = (own["refused"] for own in together)
    assert first == second
    assert first.pop("one fails") == "the input of sample 3 contains NaN or Inf; every input must be finite"
    assert "max_rows is 50 for 2 processes" in first.pop("rows")
    for name, message in first.items():
        assert f"process 1 has other {'order' if name == 'order' else name.split()[-1]}" in message


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("weights", [[], [5], [64, 64, 64, 8] * 5, [1] * 100, [0, 0, 3], [100, 1, 1, 1, 1, 1]])
def test_every_part_is_that_of_one_process_and_neighbours_stay_together(count, weights):
    shares = [share(weights, count, own) for own in range(count)]
    assert list(itertools.chain.from_iterable(shares)) == list(range(len(weights)))
    sums = [sum(weights[i] for i in own) for own in shares]
    assert max(sums) <= sum(weights) / count + max(weights, default=0)
