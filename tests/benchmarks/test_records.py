"""Benchmarks of many runs: what is there is not run again, and each has a small form that takes seconds."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import pytest
import torch
from benchmarks.choice_simulation import ARMS, SIZES, TRAINING, Job, case, samples_of, summed_up
from benchmarks.records import measure, read, table, wilson

from benchmarks import choice_simulation, subsets, tasks
from verifix.errors import DataError


@dataclass(frozen=True)
class Square:
    number: int
    power: int = 2


def squared(job):
    if job.number == 3:
        raise DataError("no threes")
    return {"found": job.number**job.power}


@pytest.mark.parametrize("workers", [1, 2])
def test_runs_that_are_there_are_not_run_again_and_a_failure_is_absent(tmp_path, capsys, workers):
    path, asked = tmp_path / "new" / "runs.jsonl", []

    def noted(job):
        asked.append(job.number)
        return squared(job)

    run = noted if workers == 1 else squared
    assert measure(path, [Square(1), Square(3)], run, workers) == 1
    assert "Square(number=3, power=2): DataError: no threes" in capsys.readouterr().err
    with path.open("a") as file:
        file.write('{"number": 2, "po')  # killed while it was writing
    assert [record["number"] for record in read(path)] == [1]
    assert measure(path, [Square(1), Square(2), Square(1, 3), Square(4)], run, workers) == 0
    found = {(record["number"], record["power"]): record["found"] for record in read(path)}
    assert found == {(1, 2): 1, (2, 2): 4, (1, 3): 1, (4, 2): 16}
    assert len(path.read_text().splitlines()) == 4
    assert asked == ([1, 3, 2, 1, 4] if workers == 1 else [])
    assert {"commit", "dirty", "torch", "threads"} <= read(path)[0]["environment"].keys()


def test_the_interval_is_that_of_the_formula_of_wilson():
    hits, runs, z = 1, 20, 1.959963984540054
    share, wide = hits / runs, 1 + z**2 / runs
    middle = (share + z**2 / (2 * runs)) / wide
    half = z / wide * (share * (1 - share) / runs + z**2 / (4 * runs**2)) ** 0.5
    assert wilson(hits, runs) == pytest.approx((100 * (middle - half), 100 * (middle + half)))


def test_rows_become_markdown():
    assert table([{"a": 1, "b": 2.25}, {"a": "x", "b": ""}]) == "| a | b |\n| --- | --- |\n| 1 | 2.2 |\n| x |  |"
    assert table([]) == ""


@pytest.mark.parametrize("data", list(SIZES))
def test_parts_share_no_sample_and_sizes_are_nested(data):
    x, y = samples_of(data, 7)
    most = SIZES[data][-1]
    assert len(x) == len(y) >= TRAINING + most + 500
    assert torch.bincount(y[:TRAINING], minlength=10).min() >= 40
    small, unseen = case(Job(data, "gain 10", "verified", 50, 7, epochs=1))
    large, same = case(Job(data, "gain 10", "verified", 100, 7, epochs=1))
    assert large.verified.digests[:50] == small.verified.digests
    assert unseen.digest() == same.digest()
    parts = [set(part.digests) for part in (large.training, large.verified, unseen)]
    assert sum(map(len, parts)) - len(set.union(*parts)) <= 2 * (data == "digits")  # two of scikit-learn's are equal


def test_each_arm_has_the_truth_that_it_states():
    for name, arm in ARMS.items():
        problem, _ = case(Job("digits", name, "verified", 200, 7, epochs=1))
        _, y = samples_of("digits", 7)
        wrong = (problem.training.labels != problem.truth).double().mean()
        assert float(wrong) == pytest.approx(arm.learned["digits"])
        true = y[TRAINING : TRAINING + 200]
        assert torch.equal(problem.verified.labels.sort().values, true.sort().values) == (arm.verified == 0)
        matching = float((problem.verified.labels == true).double().mean())
        assert matching < 0.3 if arm.permuted else matching == pytest.approx(1 - arm.verified)


@pytest.mark.usefixtures("short_training")
def test_a_quick_simulation_makes_a_table(tmp_path, capsys):
    words = ["--quick", "--arms", "permuted", "gain 10", "--inputs", "verified", "--out", str(tmp_path / "runs.jsonl")]
    assert choice_simulation.main(words) == 0
    said = capsys.readouterr().out
    assert "| digits | permuted | verified | 50 | 1 |" in said
    rows = json.loads((tmp_path / "runs.json").read_text())["rows"]
    assert [row["arm"] for row in rows] == ["permuted", "gain 10"]
    first = (tmp_path / "runs.jsonl").read_text()
    assert choice_simulation.main(words) == 0
    assert (tmp_path / "runs.jsonl").read_text() == first
    (record,) = (r for r in read(tmp_path / "runs.jsonl") if r["arm"] == "permuted")
    assert record["gain"] == record["after"] - record["before"]
    assert record["forced"] < 20  # hardly trained, and taught what means nothing


def test_the_table_of_the_simulation_counts_changes_and_losses():
    common = {"data": "digits", "arm": "clean", "inputs": "verified", "size": 50, "forced": 0.0, "seconds": 1.0}
    records = [common | {"changed": gain != 0, "gain": gain} for gain in (0.0, 1.0, -0.5, -0.6)]
    (row,) = summed_up(records)
    assert row["changed"] == 3
    assert row["changed %"].startswith("75 (30 to ")
    assert row["gain"] == pytest.approx(-0.025)
    assert row["gain where changed"] == pytest.approx(-0.1 / 3)
    assert row["lost over 0.5"] == 1


def test_quick_subsets_make_a_table(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tasks, "DIGITS", replace(tasks.DIGITS, epochs=2))
    for memo in (tasks._data, tasks._trained, subsets.network):
        memo.cache_clear()
    words = ["digits", "--quick", "--recipe", "refit", "--out", str(tmp_path / "runs.jsonl")]
    assert subsets.main(words) == 0
    assert "| digits | refit |  | 50 | 2 |" in capsys.readouterr().out
    records = read(tmp_path / "runs.jsonl")
    assert [record["network"] for record in records] == [40, 41]
    (row,) = json.loads((tmp_path / "runs.json").read_text())["rows"]
    assert row["median"] == pytest.approx(sum(record["gain"] for record in records) / 2)
    assert row["unchanged"] == sum(record["kept"] == "no change" for record in records)


@pytest.mark.shared
def test_subsets_of_the_images_are_scored_on_the_pool(shared):
    _, verified, pool = subsets.network("cifar10", 0, shared, None)
    assert (len(verified), len(pool)) == (1000, 4000)
    assert not set(verified.digests) & set(pool.digests)
