"""Which cases of slow tables run."""

from __future__ import annotations

from tests.conftest import SAMPLED, sampled


def test_of_every_slow_test_a_fixed_part_runs_and_at_least_one_case():
    cases = [f"a.py::test_wide[{i}]" for i in range(10)] + ["a.py::test_narrow[0-1]", "b.py::test_single"]
    kept = set(sampled(cases))
    assert kept == set(sampled(reversed(cases)))
    assert kept > {"a.py::test_narrow[0-1]", "b.py::test_single"}
    assert len(kept) == 2 + -(-10 // SAMPLED)
