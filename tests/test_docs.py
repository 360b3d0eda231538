"""The words and figures of README and docs, kept true."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix.capture.kinds import KINDS
from verifix.cli.main import COMMANDS, parse
from verifix.recipe.stages import STAGES

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", path.read_text(encoding="utf-8"), re.S)


def flat(path: Path) -> str:
    """Return the text of a page with every line break and run of spaces as one space."""
    return " ".join(path.read_text(encoding="utf-8").split())


def test_the_examples_of_the_readme_run_and_print_what_it_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    readme = ROOT / "README.md"
    example, uses = blocks(readme, "python")
    (shown,) = blocks(readme, "text")
    assert len([line for line in example.splitlines() if line]) <= 20
    names: dict = {}
    exec(example, names)
    assert_same_output(capsys.readouterr().out, shown)
    exec(uses, names)
    assert (tmp_path / "correction.safetensors").is_file()
    assert capsys.readouterr().out.strip() == "improved"
    everything = verifix.correct(names["model"], names["verified"], progress=False)
    networks = (names["model"], names["correction"].model, everything.model)
    inputs, labels = names["x"][1200:], names["y"][1200:]
    claimed = re.search(r"rises from (\S+)% to (\S+)%.*reaches (\S+)%", flat(readme))
    for network, accuracy in zip(networks, claimed.groups(), strict=True):
        found = 100 * float((network(inputs).argmax(dim=1) == labels).double().mean())
        assert found == pytest.approx(float(accuracy), abs=1.5)


def assert_same_output(found: str, shown: str) -> None:
    """Compare two outputs: all words exactly, numbers to 0.03 or 1%, which another processor may change; no times."""
    number, times = r"[+-]?\d+(?:\.\d+)?(?:e[+-]\d+)?", r"; took .*"
    found, shown = (re.sub(times, "", text) for text in (found, shown))
    words = [re.sub(rf" *{number}", " #", text) for text in (found, shown)]
    assert words[0].split("\n") == words[1].split("\n")
    numbers = [[float(value) for value in re.findall(number, text)] for text in (found, shown)]
    assert numbers[0] == pytest.approx(numbers[1], rel=0.01, abs=0.03)


def test_the_example_of_a_layer_kind_runs():
    example, _ = blocks(ROOT / "docs" / "extending.md", "python")
    try:
        exec(example, {})
        assert KINDS[torch.tensordot].name == "tensordot"
    finally:
        KINDS.pop(torch.tensordot, None)


def test_the_example_of_a_stage_runs():
    _, example = blocks(ROOT / "docs" / "extending.md", "python")
    model, samples = memorised(small_net(), *small_data()), small_data()
    try:
        exec(example, {"__name__": "extending"})
        choice = verifix.correct(model, samples, recipe="scale_bias", progress=False).choices["scale_bias"]
        assert [point.strength for point in choice.points] == [None, 0.25, 0.5, 2.0]
    finally:
        STAGES.pop("scale_bias", None)


def test_the_command_of_the_readme_parses():
    console = "".join(blocks(ROOT / "README.md", "console"))
    (line,) = re.findall(r"\$ verifix (correct .*?--test test\.parquet)", console.replace("\\\n", " "), re.S)
    command = parse(line.split())
    assert (command.verified_from, command.channel_mean) == ("unseen", [0.491, 0.482, 0.447])
    for name in re.findall(r"`verifix (\w+)", (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")):
        assert name in COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text(encoding="utf-8")):
        there = page.parent / target if target else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), f"{target}#{anchor}"


def anchors(page: Path) -> set[str]:
    """Return what the headings of a page are called in links."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_figures_are_those_of_the_committed_measurements():
    readme = flat(ROOT / "README.md")
    results = ROOT / "benchmarks" / "results"
    recipes = json.loads((results / "recipes.json").read_text())
    vgg = json.loads((results / "cifar10_vgg11.json").read_text())["recipes"]
    found = {name: recipes[name]["mean"] for name in ("digits", "spirals")}
    found["vgg"] = {"before": vgg["auto"]["test"]["before"], **{k: run["test"]["after"] for k, run in vgg.items()}}
    for name, verified in (("digits", "200"), ("spirals", "200"), ("vgg", "1,000")):
        row = found[name]
        assert f"| {verified} | {row['before']:.1f}% | {row['verifix']:.1f}% | **{row['auto']:.1f}%** |" in readme
    assert f"{vgg['auto']['seconds'] / 60:.0f} minutes and {vgg['auto']['peak_gigabytes']:.1f} GB" in readme
    meaningless = recipes["permuted_labels"]
    assert f"did so in {meaningless['nothing_kept']} of {meaningless['seeds']}." in readme
    stages = (ROOT / "docs" / "stages.md").read_text(encoding="utf-8")  # rows are lines
    for recipe, right in recipes["digits"]["mean"].items():
        assert recipe == "before" or re.search(rf"\| `{recipe}`.*\| {right:.1f}% \|", stages)
    for recipe, run in vgg.items():
        assert re.search(rf"\| `{recipe}`.*\| {run['test']['after']:.2f}% \| {run['seconds']:.0f} \|", stages)
    for name, numbers in vgg["auto"]["choices"]["layerwise"]["layers"].items():
        assert f"`{name.removesuffix('.weight')}` α {numbers['alpha']:.0f}, g {numbers['gate']:.2f}" in " ".join(
            stages.split()
        )
    digits = json.loads((results / "digits_choices.json").read_text())
    mean, permuted = digits["mean"], digits["permuted_labels_accepted"]
    assert f"{permuted['runs'] - permuted['tempered']} of {permuted['runs']} runs" in readme
    estimate, truth = mean["training_cross_fitted_gain"], mean["training_gain"]
    sentence = f"they estimate a gain of {estimate:+.1f} points where the true gain is {truth:+.1f}."
    assert sentence in readme
    means = json.loads((results / "texts_and_vit.json").read_text())["mean"]
    for name, verified in (("texts", 300), ("pictures", 200)):
        row = means[name]
        assert f"| {verified} | {row['before']:.1f}% | {row['verifix']:.1f}% | **{row['auto']:.1f}%** |" in readme
    page = flat(ROOT / "docs" / "verified-samples.md")
    for source in ("unseen", "training"):
        row = f"| {mean[f'{source}_cross_fitted_gain']:+.1f} | {mean[f'{source}_gain']:+.1f} |"
        assert row in page
    trusted = json.loads((results / "trusted_digits.json").read_text())
    names = {"random": "at random, labels as given", "verified": "verified, unseen"}
    for name, row in trusted["mean"].items():
        figures = [
            row["pure"],
            row.get("pure_early"),
            *(row[f"after_{a}"] for a in ("auto", "100.0", "1000.0", "10000.0")),
        ]
        cells = " | ".join("" if x is None else f"{x:.1f}%" for x in figures).replace("|  |", "| |")
        assert f"| {names.get(name, f'`{name}`')} | {cells} |" in page
    assert all(r["after_auto"] == r["before"] for r in trusted["rows"] if r["samples"] not in names)
    assert f"gets {trusted['mean']['random']['before']:.1f}%" in page
    method = flat(ROOT / "docs" / "method.md")
    assert f"{permuted['plain']} of {permuted['runs']} runs" in method


def test_the_proof_of_the_real_network_is_told_as_it_was_measured():
    record = json.loads((ROOT / "benchmarks" / "results" / "cifar10_proof.json").read_text(encoding="utf-8"))
    page = flat(ROOT / "docs" / "proof.md")
    gain = record["comparison"]["gain"]
    assert f"its proof took {record['seconds'] / 60:.0f} minutes and {record['peak_gigabytes']:.1f} GB" in page
    assert (
        f"{record['comparison']['verdict']}, {gain['estimate']:+.1f} points ({gain['low']:+.1f} to {gain['high']:+.1f})"
        in page
    )
