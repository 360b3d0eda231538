"""The benchmark of strategies: its parts share nothing, its table and its page say what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from benchmarks.records import read
from benchmarks.strategies import BEGIN, END, PAGE, POOL, STRATEGIES, TASKS, TRAINING, problem, standings, summed_up

from benchmarks import strategies


def test_a_quick_run_makes_a_table(tmp_path, capsys):
    words = ["digits", "--quick", "--strategies", "random", "suspect", "--recipe", "refit"]
    words += ["--out", str(tmp_path / "runs.jsonl")]
    assert strategies.main(words) == 0
    assert "| digits | refit | 0.5 | 50 | random | 1 |" in capsys.readouterr().out
    first = (tmp_path / "runs.jsonl").read_text()
    assert strategies.main(words) == 0
    assert (tmp_path / "runs.jsonl").read_text() == first
    by_strategy = {record["strategy"]: record for record in read(tmp_path / "runs.jsonl")}
    assert by_strategy["suspect"]["wrong"] > by_strategy["random"]["wrong"] + 10
    rows = json.loads((tmp_path / "runs.json").read_text())["rows"]
    assert [row["strategy"] for row in rows] == ["random", "suspect"]
    for row in rows:
        record = by_strategy[row["strategy"]]
        assert row["gain"] == pytest.approx(record["after"] - record["before"])
        assert row["more than random"] == pytest.approx(record["gain"] - by_strategy["random"]["gain"])


def test_parts_share_no_sample_and_labels_are_wrong_as_often_as_stated():
    about = problem("digits", 200, 1, Path(), None)
    assert len(about.given) == POOL
    assert float((about.given != about.truth).double().mean()) == pytest.approx(0.3, abs=0.005)
    assert len(about.unseen) == 1797 - TRAINING - POOL
    unseen = about.unseen.source.dataset
    rows = {tuple(about.inputs[i].tolist()) for i in range(POOL)}
    assert sum(tuple(unseen[i][0].tolist()) in rows for i in range(len(about.unseen))) <= 1  # two digits are equal


@pytest.mark.shared
def test_images_to_select_from_are_neither_test_images_nor_those_of_a_training(shared):
    from benchmarks.tasks import TASKS as NETWORKS
    from benchmarks.tasks import cifar10_to_select_from

    (inputs, truth), given, unseen = cifar10_to_select_from(shared)
    assert (len(inputs), len(unseen)) == (4000, 5000)
    assert 0.1 < float((truth != given).double().mean()) < 0.25
    training = NETWORKS["cifar10"].load("resnet", 0, shared)
    assert torch.equal(inputs[:5], training.verified[0][1000:1005])  # the pool follows the verified images there
    assert (
        len({x.numpy().tobytes() for x in training.training[0]} & set(map(_bytes, unseen.batches(range(200), 1)))) == 0
    )


def _bytes(batch) -> bytes:
    return batch.inputs[0].numpy().tobytes()


RECORDS = [
    {"task": task, "recipe": "auto", "share": 0.5, "strategy": strategy, "size": size, "seed": seed, "wrong": 30.0,
     "before": 70.0, "gain": size / 100 + STRATEGIES.index(strategy) * (1 if task == "digits" else 2) + k,
     "seconds_selecting": 1.0, "seconds_correcting": 2.0}
    for task, row in TASKS.items() for k, seed in enumerate(row.seeds) for size in row.sizes for strategy in STRATEGIES
]  # fmt: skip


def test_the_standings_are_means_of_paired_differences():
    found = standings(summed_up(RECORDS))
    assert [row["strategy"] for row in found] == list(STRATEGIES[::-1])
    assert found[0]["digits"] == pytest.approx(4)
    assert found[0]["cifar10"] == pytest.approx(8)
    assert found[0]["mean"] == pytest.approx(6)
    other = [record | {"share": 0.1, "gain": 50.0} for record in RECORDS]
    assert standings(summed_up(RECORDS + other)) == found
    (row,) = (r for r in summed_up(RECORDS[:1]) if r["strategy"] == RECORDS[0]["strategy"])
    assert row["± of the mean"] == ""


def test_the_page_gets_tables_and_a_plot(tmp_path):
    page, plot = tmp_path / "selection.md", tmp_path / "images" / "strategies.svg"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    strategies.write_page(summed_up(RECORDS), page, plot)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "](images/strategies.svg)" in text
    assert "old" not in text
    first = plot.read_bytes()
    strategies.write_page(summed_up(RECORDS), page, plot)
    assert plot.read_bytes() == first
    assert page.read_text() == text
    assert BEGIN in (Path(__file__).parents[2] / PAGE).read_text("utf-8")
