"""The words and figures of docs/review.md and docs/tutorial.md, kept true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests import record_cases
from verifix.cli.main import parse

ROOT = Path(__file__).resolve().parents[2]
RESULTS = json.loads((ROOT / "benchmarks" / "results" / "stopping_rule.json").read_text())


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("row", [*RESULTS["no_gain"], *RESULTS["gain"]], ids=str)
def test_gains_are_told_as_they_were_simulated(row):
    gain = f"{row['gain']:+.0f}" if row["gains"] != "never above" else "differ, 0 or less"
    gain = f"rising to {gain}" if row["gains"] == "rising" else gain
    median = "" if row["median_samples"] is None else f"{row['median_samples']:.0f}"
    shares = (row["improved"], row["harmful"], row["mcnemar_at_every_look"], row["bounds_missed"])
    cells = " | ".join(f"{share:.1f}%" for share in shares)
    assert f"| {gain} | {row['flips']:.0f}% | {cells} | {median} |" in page("review.md")


@pytest.mark.parametrize("row", RESULTS["rate"], ids=str)
def test_rates_are_told_as_they_were_simulated(row):
    widths = " | ".join(f"{row[f'width_after_{at}']:.0f}" for at in (50, 100, 200, 500))
    assert f"| {row['size']:,} | {row['rate']:.0f}% | {row['bounds_missed']:.1f}% | {widths} |" in page("review.md")


def test_no_design_is_wrong_more_often_than_it_may():
    assert max(row["improved"] for row in RESULTS["no_gain"]) <= 2.5
    every = [*RESULTS["no_gain"], *RESULTS["gain"], *RESULTS["rate"]]
    assert max(row["bounds_missed"] for row in every) <= 5
    assert f"{RESULTS['runs']:,} runs" in page("review.md")


def test_the_commands_of_the_tutorial_parse_and_their_outputs_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    header = record_cases.header(tmp_path, [None] * 4, [0] * 4, None, random=[0], probability=0.25)
    record_cases.write(tmp_path / "verified.jsonl", header)
    lines = re.findall(r"```console\n\$ (.*?)\n```", page("tutorial.md"))
    commands = [parse(line.split()[1:]) for line in lines if line.startswith("verifix")]
    assert [type(command).__name__ for command in commands] == [
        "SelectCommand", "ReviewCommand", "CorrectCommand", "CompareCommand",
    ]  # fmt: skip
    outputs = re.findall(r"```text\n(.*?)```", page("tutorial.md"), re.S)
    assert len(outputs) == 5
    assert all(len(output) > 20 for output in outputs)
    assert "Improved" in outputs[3]


def test_the_keys_of_the_docs_are_those_of_the_page():
    script = (ROOT / "src" / "verifix" / "review" / "page" / "main.js").read_text()
    known = {name.strip('"') for name in re.findall(r'^  ("."|\w|Enter): ', script, re.M)}
    told = {key for row in re.findall(r"^\| (`.*?) \|", page("review.md"), re.M) for key in re.findall(r"`(.)`", row)}
    assert told - set("0913") <= known
    assert {"k", "u", "s", "z", "g", "v", "d", "c", "f"} <= told
