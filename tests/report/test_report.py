from __future__ import annotations

import copy
import functools
import html
import json
import operator
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonschema import Draft202012Validator

from tests import report_cases as cases
from verifix.errors import OutputError, UsageError
from verifix.projection import importance
from verifix.report import (
    SCHEMA,
    as_json,
    model_card,
    plain,
    read_result,
    render,
    result_of,
    schema,
    write_card,
    write_report,
    write_result,
)
from verifix.report.charts import kept, spectrum, thinned
from verifix.report.files import as_result
from verifix.report.formatting import printable, shortened
from verifix.report.next_steps import undo_command
from verifix.report.page import sections
from verifix.report.proof_section import interval

VOID = {"meta", "link", "img", "br", "hr", "input"}
CASES = cases.CASES


@pytest.fixture(scope="module")
def results():
    return {name: make() for name, make in CASES.items()}


@pytest.fixture(scope="module")
def pages():
    return {name: cases.page(name) for name in CASES}


class Page(HTMLParser):
    """A page as a list of elements, and what is wrong with their nesting."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.faults: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(tag)
        if tag in {"td", "th", "dt", "dd", "li", "p", "h3", "caption"}:
            self.texts.append(" ")

    def handle_data(self, data):
        self.texts.append(data)

    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def text_of(page: str) -> str:
    return Page(page.partition("</style>")[2]).text()


def section(page: str, name: str) -> str:
    found = re.search(rf'<section id="{name}".*?</section>', page, re.S)
    assert found
    return Page(found[0]).text()


# --- result.json


@pytest.mark.parametrize("name", CASES)
def test_results_fit_the_schema_before_and_after_json(results, name):
    Draft202012Validator.check_schema(schema())
    validator = Draft202012Validator(schema())
    text = as_json(results[name])
    validator.validate(json.loads(text))
    assert as_json(json.loads(text)) == text
    assert json.loads(text)["schema"] == SCHEMA == schema()["properties"]["schema"]["const"]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("verdict",), "better"),
        (("schema",), "verifix-result-2"),
        (("changed",), "yes"),
        (("proof", "comparison", "samples"), -1),
        (("proof", "kind"), "guess"),
        (("layers", 0, "status"), "fixed"),
        (("examples", 0, "outcome"), "good"),
        (("choices", "project", "points", 0, "loss"), "low"),
    ],
)
def test_the_schema_refuses_what_it_does_not_describe(results, path, value):
    result = copy.deepcopy(plain(results["digits"]))
    *way, last = path
    place = result
    for step in way:
        place = place[step]
    place[last] = value
    assert [list(error.absolute_path) for error in Draft202012Validator(schema()).iter_errors(result)]


def test_required_keys_are_required_and_further_ones_allowed(results):
    validator = Draft202012Validator(schema())
    validator.validate(plain(results["minimal"] | {"a key of a later version": {"x": 1}}))
    for key in schema()["required"]:
        without = {k: v for k, v in plain(results["minimal"]).items() if k != key}
        assert not validator.is_valid(without)


def test_a_result_becomes_plain_data():
    given = {"a": (1, 2.5), "b": Path("x"), "c": np.float64(2), "d": np.arange(3), "e": float("inf"), "f": {1: True}}
    assert plain(given) == {
        "schema": SCHEMA,
        "a": [1, 2.5],
        "b": "x",
        "c": 2.0,
        "d": [0, 1, 2],
        "e": None,
        "f": {"1": True},
    }
    assert "NaN" not in as_json({"x": [float("nan"), np.float32("inf")]})
    with pytest.raises(UsageError, match=r"verifix-result-9.*reads 'verifix-result-1'"):
        plain({"schema": "verifix-result-9"})
    with pytest.raises(UsageError, match=r"a\.b of the result is a object"):
        plain({"a": {"b": object()}})


def test_what_the_command_gives_today_fits_the_schema(tmp_path):
    from tests.cases import small_data, small_net
    from verifix import correct

    correction = correct(small_net().eval(), small_data(), recipe="verifix", verified_from="unseen", progress=False)
    result = correction.as_dict() | {"changed": correction.changed, "out": None, "correction_file": None}
    Draft202012Validator(schema()).validate(plain(result))
    page = render(result)
    assert "No proof was made" in text_of(page)
    assert "SHA-256" in text_of(page)
    typed = result_of(correction)
    Draft202012Validator(schema()).validate(plain(typed))
    assert typed.architecture == type(correction.model).__name__
    unknown = dict.fromkeys(("notes", "unchanged_by_rounding", "proof", "architecture", "created"))
    assert render(replace(typed, **unknown)) == page


def test_files_are_written_atomically_and_not_over_others(results, tmp_path):
    writers = {"r.json": write_result, "r.html": write_report, "README.md": write_card}
    for name, write in writers.items():
        path = write(tmp_path / name, results["digits"])
        first = path.read_bytes()
        assert b"\r" not in first
        with pytest.raises(UsageError, match="exists already"):
            write(path, results["minimal"])
        assert path.read_bytes() == first
        write(path, results["minimal"], force=True)
        assert path.read_bytes() != first
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(writers)
    assert json.loads((tmp_path / "r.json").read_text())["changed"] is False


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_nothing_is_left_where_a_report_cannot_be_written(results, tmp_path):
    from resource import RLIMIT_FSIZE, getrlimit, setrlimit
    from signal import SIG_IGN, SIGXFSZ, signal

    limits, before = getrlimit(RLIMIT_FSIZE), signal(SIGXFSZ, SIG_IGN)
    try:
        setrlimit(RLIMIT_FSIZE, (4096, limits[1]))
        with pytest.raises(OutputError, match="could not be written"):
            write_report(tmp_path / "r.html", results["digits"])
    finally:
        setrlimit(RLIMIT_FSIZE, limits)
        signal(SIGXFSZ, before)
    assert list(tmp_path.iterdir()) == []


# --- the page


@pytest.mark.parametrize("name", CASES)
def test_a_page_is_whole_and_asks_for_nothing(pages, name):
    page = Page(pages[name])
    assert page.faults == []
    assert page.open == []
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "base", "form", "input", "image", "foreignobject"}
    policy = next(a for tag, a in page.elements if tag == "meta" and a.get("http-equiv"))
    assert policy["content"].startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'")
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")]
        for key in ("src", "href", "xlink:href", "data", "action"):
            assert attributes.get(key, "#").startswith(("#", "data:image/png;base64,", "data:,"))
        assert "url(" not in attributes.get("style", "").replace("url(#", "")
        if tag == "img":
            assert attributes["alt"]
    style = pages[name].partition("<style>")[2].partition("</style>")[0]
    assert "http" not in style
    assert "url(" not in style
    assert "@import" not in style


@pytest.mark.parametrize("name", CASES)
def test_every_section_is_there_with_its_heading_and_in_the_contents(results, pages, name):
    page, expected = Page(pages[name]), sections(as_result(results[name]))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert [a["id"] for tag, a in page.elements if tag == "section"] == list(expected)
    headings = {a.get("id") for tag, a in page.elements if tag == "h2"}
    for tag, attributes in page.elements:
        if tag == "section":
            assert attributes["aria-labelledby"] in headings
            assert len(section(pages[name], attributes["id"])) > 20
        if tag == "a":
            assert attributes["href"].removeprefix("#") in ids
    used = re.findall(r'href="#(c[0-9a-f]{8}-[^"]+)"|url\(#([^)]+)\)', pages[name])
    assert {a or b for a, b in used} <= set(ids)
    drawings = [a for tag, a in page.elements if tag == "svg"]
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
    assert all(a.get("scope") in {"row", "col"} for tag, a in page.elements if tag == "th")


def test_the_order_is_that_of_the_questions(results):
    names = list(sections(as_result(results["digits"])))
    assert names == [
        *("verdict", "next", "before-after", "classes", "confusion", "samples", "confidence"),
        *("strength", "stages", "layers", "run"),
    ]
    assert list(sections(as_result(results["minimal"]))) == [
        "verdict",
        "next",
        "before-after",
        "stages",
        "layers",
        "run",
    ]


def test_the_title_names_model_data_and_date(results):
    about = {"model": "py:net.py:build", "created": "2026-12-01T09:39:00+00:00"}
    page = render(results["digits"] | about)
    head = Page(re.search("<header>.*</header>", page, re.S)[0]).text()
    assert head == (
        "Correction of runs/2026-11-20/digits-mlp.safetensors model py:net.py:build "
        "verified samples 200 in data/verified.parquet date 1 December 2026"
    )
    assert "<title>Improved: runs/2026-11-20/digits-mlp.safetensors – verifix report</title>" in page
    assert "Correction of Net " in text_of(render(results["minimal"] | {"architecture": "Net"}))
    assert "date" not in Page(re.search("<header>.*</header>", render(results["minimal"]), re.S)[0]).text()


def test_the_same_result_gives_the_same_bytes_in_another_process(results, pages, tmp_path):
    (tmp_path / "r.json").write_text(as_json(results["digits"]))
    code = (
        "import json, sys; from pathlib import Path; from verifix.report import render\n"
        "sys.stdout.buffer.write(render(json.loads(Path(sys.argv[1]).read_text())).encode())"
    )
    (tmp_path / "matplotlibrc").write_text("svg.fonttype: path\naxes.labelsize: 20\nxtick.major.size: 9\n")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "r.json")],
        capture_output=True,
        check=True,
        timeout=300,
        cwd=tmp_path,
        env=os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    same = done.stdout == pages["digits"].encode()
    assert same  # without a comparison line by line, which takes minutes


def test_the_verdict_is_one_sentence_with_its_figures(results, pages):
    found = results["digits"]["proof"]["comparison"]
    gain = found["gain"]
    sentence = (
        f"Improved {found['before']['accuracy']:.1f}% correct before, {found['after']['accuracy']:.1f}% after "
        f"(+{gain['estimate']:.1f}, 95% interval +{gain['low']:.1f} to +{gain['high']:.1f}) "
        "on 200 verified samples that no stage and no strength has seen."
    )
    assert section(pages["digits"], "verdict").startswith(sentence)
    told = section(pages["not proven"], "verdict")
    assert told.startswith("Not proven ")
    assert "p is 0.084, and must be below 0.025" in told
    assert section(pages["minimal"], "verdict").startswith("No change the samples do not clearly support")
    test = section(pages["texts"], "verdict")
    assert "on 90 test samples, on which nothing was chosen." in test


def test_what_holds_for_the_verdict_stands_beside_it(results, pages):
    told = section(pages["digits"], "verdict")
    assert "They were prepared like this: pixels from 0 to 1, 8 × 8, grey." in told
    assert "Noticed on the way The averaged weights of the checkpoint were not used." in told
    absent = copy.deepcopy(results["digits"]) | {"class_names": list("abcdefghij")}
    absent["provenance"]["classes_without_samples"] = [2, 9]
    assert "No sample has the label c, j: the correction may forget it" in section(render(absent), "verdict")


def test_what_to_do_next_is_said_for_each_outcome(results, pages):
    told = section(pages["digits"], "next")
    assert "Use fixed.safetensors in place of the original" in told
    assert "verifix undo fixed.safetensors --out fixed-original.safetensors" in told
    compared = section(render(results["digits"] | {"model": "py:net.py:build"}), "next")
    assert (
        "verifix compare runs/2026-11-20/digits-mlp.safetensors fixed.safetensors --model py:net.py:build "
        "--data OTHER_SAMPLES" in compared
    )
    told = section(pages["not proven"], "next")
    assert "About 1,200 more verified samples would decide" in told
    assert "Or try --recipe verifix" in told
    assert "Few verified samples" not in told
    few = copy.deepcopy(results["not proven"])
    few["provenance"]["class_samples"] = [5, *8 * [24], 6]
    assert "Few verified samples so far: 0 (5), 9 (6)." in section(render(few), "next")
    assert "The same command with --force writes it anyway." in told
    assert "undo" not in told
    assert "with --test DATA" in section(pages["training"], "next")
    assert "Verify more samples and run it again" in section(pages["minimal"], "next")
    in_python = results["digits"] | {"command": None, "out": None, "correction_file": None}
    assert 'Correction.load("FILE").undo_(model)' in html.unescape(section(render(in_python), "next"))
    folder = as_result(results["digits"] | {"out": "models/my fixed", "correction_file": "x"})
    assert undo_command(folder) == "verifix undo 'models/my fixed' --out 'models/my fixed-original'"


def test_a_harmful_correction_that_was_forced_says_so(results):
    result = copy.deepcopy(results["digits"])
    result["verdict"] = result["proof"]["comparison"]["verdict"] = "harmful"
    result["proof"]["comparison"] |= {"p_worse": 0.00001}
    page = render(result)
    assert section(page, "verdict").startswith("Harmful ")
    assert "p is below 0.0001" in section(page, "verdict")
    assert "Do not use this correction" in section(page, "next")
    assert "verifix undo fixed.safetensors" in section(page, "next")


def test_a_loss_that_could_be_chance_is_judged_by_its_own_side():
    result = cases.not_proven_result()
    result["proof"]["comparison"] |= {"gain": {"estimate": -2.0, "low": -5.5, "high": 1.5, "level": 0.95}}
    result["proof"]["comparison"] |= {"p_better": 0.93, "p_worse": 0.11, "samples_needed": None}
    told = section(render(result), "verdict")
    assert "(−2.0, 95% interval −5.5 to +1.5)" in told
    assert "p is 0.11, and must be below 0.025" in told
    assert "more verified samples" not in told


def test_groups_and_near_copies_stand_beside_the_verdict_and_in_the_card():
    result = cases.not_proven_result()
    grouped = "The 200 samples are 40 independent groups (copies, or one declared group); interval and p count groups."
    result["proof"]["comparison"] |= {"groups": 40}
    told = section(render(result), "verdict")
    assert grouped in told
    assert "in about 240 more groups, would decide" in section(render(result), "next")
    assert grouped in model_card(result)
    result["proof"]["comparison"] |= {"doubt": "These have <near-copies>.", "p_better": 1e-9, "groups": None}
    told = section(render(result), "verdict")
    assert told.startswith("Not proven ")
    assert "These have <near-copies>." in html.unescape(told)
    assert "could be chance" not in told
    card = model_card(result)
    assert "near-copies" in card
    assert "metric_value" not in card
    assert "value:" in model_card(cases.digits_result())


def test_samples_of_the_training_or_unverified_are_a_caution_beside_the_verdict(results, pages):
    told = section(pages["training"], "verdict")
    assert told.startswith("No proof nothing was measured on samples that the correction has not seen.")
    assert "Caution. The network was trained on the verified samples." in told
    assert "give --test" in told
    trusted = copy.deepcopy(results["digits"]) | {"unverified": True}
    trusted["provenance"]["verified_from"] = "trusted"
    told = section(render(trusted), "verdict")
    assert "Caution. Nobody verified the labels" in told
    assert "on 200 samples whose labels nobody verified" in told
    assert "Caution. Mind this." in section(render(results["digits"] | {"warning": "Mind this."}), "verdict")
    assert "Caution" not in section(pages["digits"], "verdict")


def test_no_proof_takes_one_line(pages):
    told = section(pages["training"], "before-after")
    assert told.startswith("Before and after No proof was made")
    assert len(told.split()) < 40
    assert section(pages["minimal"], "before-after").endswith("Nothing was changed, so there is nothing to compare.")
    assert "svg" not in pages["minimal"].partition("</style>")[2]


@pytest.mark.parametrize(
    ("samples", "before", "after", "sentence", "change"),
    [
        (10_000, 58.15, 58.40, "58.15% correct before, 58.40% after (+0.25, ", "58.15% 58.40% +0.25"),
        (90, 64 / 0.9, 77 / 0.9, "71.1% correct before, 85.6% after (+14.5, ", "71.1% 85.6% +14.5"),
    ],
)
def test_a_gain_is_the_difference_of_what_is_shown(results, samples, before, after, sentence, change):
    result = copy.deepcopy(results["digits"])
    found = result["proof"]["comparison"]
    found |= {"samples": samples, "gain": found["gain"] | {"estimate": after - before}}
    found["before"]["accuracy"], found["after"]["accuracy"] = before, after
    page = render(result)
    assert sentence in section(page, "verdict")
    assert change in section(page, "before-after")
    assert section(page, "verdict").count(change.split()[2]) == 2  # in the sentence and as a figure of its own


def test_an_estimate_has_two_digits_that_count(results):
    result = copy.deepcopy(results["not proven"])
    result["proof"]["comparison"]["samples_needed"] = 113_374
    told = section(render(result), "next")
    assert "About 120,000 more" in told
    assert "113" not in told


def test_before_and_after_have_intervals(results, pages):
    found = results["digits"]["proof"]["comparison"]
    typed = as_result(results["digits"]).comparison
    low, high = interval(found["before"]["accuracy"], typed)
    n, p, z = 200, found["before"]["accuracy"] / 100, 1.959964
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    assert (low, high) == pytest.approx([100 * (middle + s * half) / (1 + z * z / n) for s in (-1, 1)], abs=1e-4)
    assert interval(50.0, replace(typed, weighted=True)) == (None, None)
    assert interval(50.0, replace(typed, samples=0)) == (None, None)
    told = section(pages["digits"], "before-after")
    assert f"{low:.1f}–{high:.1f}%" in told
    for title in ("Balanced accuracy", "Cross-entropy", "Calibration error", "Outer folds"):
        assert title in told
    assert f"{found['before']['cross_entropy']:.4f}" in told
    weighted = copy.deepcopy(results["digits"])
    weighted["proof"]["comparison"]["weighted"] = True
    assert "Samples are weighted" in section(render(weighted), "before-after")


def test_the_curve_and_the_stages_say_what_was_chosen_and_why(results, pages):
    told = section(pages["digits"], "strength")
    assert "Chosen: α = 316.2" in told
    stages = section(pages["digits"], "stages")
    for point in results["digits"]["choices"]["project"]["points"][1:]:
        assert f"{point['loss']:.4f}" in stages
    for stage, choice in results["digits"]["choices"].items():
        assert (f"{stage} not used" in stages) == (choice["strength"] is None)
        assert choice["reason"] in stages
    assert "0.001 × 30" in stages
    given = copy.deepcopy(results["digits"])
    given["choices"]["project"] |= {"points": [], "reason": "set by the user", "strength": 100.0}
    assert "strength" not in sections(as_result(given))
    assert 'id="strength"' not in render(given)
    assert "set by the user." in section(render(given), "stages")


def test_classes_are_all_shown_or_those_that_changed_most(results, pages):
    told = section(pages["digits"], "classes")
    for row in results["digits"]["proof"]["comparison"]["per_class"]:
        change = f"{row['before']:.1f}% → {row['after']:.1f}%"
        assert change in told
        assert f"{row['fixed']} fixed, {row['broken']} broken" in told
    huge = results["huge"]["proof"]["comparison"]["per_class"]
    known = [row for row in huge if row["before"] is not None]
    told = section(pages["huge"], "classes")
    assert "1,000 classes are too many to show: here are the 24 in which most answers changed." in told
    shown = [(int(won), int(lost)) for won, lost in re.findall(r"(\d+) fixed, (\d+) broken", told)]
    net = [won - lost for won, lost in shown]
    every = sorted(row["fixed"] - row["broken"] for row in known if row["after"] != row["before"])
    assert net == every[:12] + every[:-13:-1]


def test_confusion_stands_side_by_side_with_class_names(results, pages):
    named = results["digits"] | {"class_names": [f"digit {i}" for i in range(10)]}
    tables = re.findall(r'<table class="matrix".*?</table>', render(named), re.S)
    found = results["digits"]["proof"]["comparison"]
    for table, key in zip(tables, ("before", "after"), strict=True):
        cells = re.findall(r"<td class[^>]*>([^<]*)</td>", table)
        numbers = [int(cell.replace(",", "") or 0) for cell in cells]
        assert np.array_equal(np.array(numbers).reshape(10, 10), np.array(found[f"confusion_{key}"]))
        assert re.findall(r"<bdi>([^<]*)</bdi>", table) == 2 * named["class_names"]
    assert "1,000,000 cells" in section(pages["huge"], "confusion")


def test_of_many_classes_the_pairs_that_changed_most_are_shown(pages):
    assert 'class="matrix"' not in pages["hostile"]  # forty classes
    found = cases.hostile_result()["proof"]["comparison"]
    before, after = (np.array(found[f"confusion_{key}"]) for key in ("before", "after"))
    change = np.abs(after - before)
    np.fill_diagonal(change, 0)
    part = re.search('<section id="confusion".*?</section>', pages["hostile"], re.S)[0]
    rows = re.findall(r'data-head="Before">(\d+)</td><td data-head="After">(\d+)</td>', part)
    shown = [abs(int(new) - int(old)) for old, new in rows]
    assert shown == sorted(change.flatten().tolist(), reverse=True)[:15]


def test_samples_are_shown_worst_first_with_their_number(results, pages):
    told = section(pages["digits"], "samples")
    examples = results["digits"]["examples"]
    for outcome in ("broken", "fixed"):
        chosen = [e for e in examples if e["outcome"] == outcome]
        places = [told.index(e["name"]) for e in chosen[:20]]
        assert places == sorted(places)
        assert results["digits"]["proof"]["comparison"][outcome] == len(chosen)
    assert re.search(r"20 of \d+, the most confident wrong answers of the original model first", told)
    assert "Fixed: wrong before, correct after" in told
    images = re.findall(r'<img src="(data:image/png;base64,[^"]+)" alt="[^"]+" class="small">', pages["digits"])
    assert set(images) <= {e["image"] for e in examples}
    assert "The parcel came two days late" in section(pages["texts"], "samples")
    assert '<img src="data:image/png' in pages["huge"]
    assert 'class="small"' not in pages["huge"]


@pytest.mark.parametrize(
    "image",
    [
        "https://example.invalid/a.png",
        "data:text/html;base64,PHNjcmlwdD4=",
        "data:image/svg+xml;base64,PHN2Zz4=",
        'data:image/png;base64,AAAA" onerror="alert(1)',
        "javascript:alert(1)",
        "",
    ],
)
def test_only_pictures_that_carry_their_content_are_shown(results, image):
    result = copy.deepcopy(results["texts"])
    for example in result["examples"]:
        example["image"] = image
    assert "<img" not in render(result)


def test_layers_spectra_and_skipped_ones(results, pages):
    told = section(pages["digits"], "layers")
    assert "6.weight 53.0% 12.2 corrected: project α 316.2; layerwise α 300, gate 0.5" in told
    skipped = told.partition("Parameters that were not corrected, and why")[2]
    for layer in results["digits"]["layers"][3:]:
        assert layer["parameter"] in skipped
        assert (layer["reason"] or "not used by the model") in skipped
    for data in results["digits"]["spectra"].values():
        above = int((importance(torch.tensor(data["eigenvalues"], dtype=torch.float64), 316.2) >= 0.5).sum())
        assert f"{above} of {len(data['eigenvalues'])} directions have a weight of one half or more" in told
    told = section(pages["huge"], "layers")
    assert "The layers that changed most are shown; all 320 are in" in told
    assert "92 more layers" in told
    assert "Spectra of 12 of 20 layers" in told
    assert "blocks.19.attention" in told
    assert "and 67 more" in told


def test_the_cut_is_where_the_importance_is_one_half():
    for alpha in (0.5, 1.0, 30.0, 1e6):
        r = torch.tensor(1 / (alpha + 1), dtype=torch.float64)
        assert float(importance(r, alpha)) == pytest.approx(0.5, rel=1e-12)
        values = np.geomspace(1, 1e-9, 200)
        lam = alpha * values / ((alpha - 1) * values + 1)
        assert kept(list(values), alpha) == int((lam >= 0.5).sum())
    order = thinned(5000)
    assert order[0] == 1
    assert order[-1] == 5000
    assert len(order) <= 160
    assert sorted(set(order)) == order
    assert thinned(3) == [1, 2, 3]
    assert "svg" in spectrum([1.0], 10.0, "w")
    assert "svg" in spectrum([0.6, 0.4, 0.0], None, "w")


def test_time_memory_and_origin(results, pages):
    told = section(pages["digits"], "run")
    assert "The run took 62 s and held at most 1.3 GB of memory (project 2.3 s, " in told
    assert "finetune 12 s, proof 36 s)." in told
    for text in (results["digits"]["command"], cases.SHA, cases.SHA[::-1], "data/verified.parquet", "2.4.6", "unseen"):
        assert text in told
    assert "fixed.correction.safetensors" in told
    assert "took" not in section(pages["minimal"], "run")


def test_every_hostile_name_is_text_and_makes_no_element(pages):
    ours, theirs = Page(pages["digits"]), Page(pages["hostile"])
    assert {tag for tag, _ in theirs.elements} <= {tag for tag, _ in ours.elements} | {"blockquote"}
    names = {key for _, attributes in theirs.elements for key in attributes}
    assert names <= {key for _, attributes in ours.elements for key in attributes} | {"dir"}
    for name in cases.HOSTILE:
        assert html.escape(name).replace("&quot;", "&#34;").replace("&#x27;", "&#39;") in pages["hostile"]


def test_names_that_no_page_can_hold_are_pictured():
    result = cases.hostile_result()
    names = list(cases.UNSHOWABLE)
    result["class_names"] = names + result["class_names"][len(names) :]
    result["examples"] = [e | {"name": name} for e, name in zip(result["examples"], names, strict=False)]
    page = render(result)
    page.encode()
    for shown in cases.UNSHOWABLE.values():
        assert f"<bdi>{shown}</bdi>" in page
    assert printable("tab\tand\nline") == "tab\tand\nline"
    assert shortened("x" * 300) == "x" * 300
    assert len(shortened("x" * 10_000)) == 299
    Draft202012Validator(schema()).validate(json.loads(as_json(result)))


def places(data, way=()):
    """Yield the way to every value of a result, of lists only to the first."""
    for key in data if isinstance(data, dict) else range(min(len(data), 1)):
        yield *way, key
        if isinstance(data[key], (dict, list)):
            yield from places(data[key], (*way, key))


def changed(data, way):
    """Yield the result with None in one place, and, unless that is in a list, with nothing."""
    for step in (lambda place: place.__setitem__(way[-1], None), lambda place: place.pop(way[-1])):
        copied = copy.deepcopy(data)
        place = functools.reduce(operator.getitem, way[:-1], copied)
        step(place)
        yield copied
        if isinstance(place, list):
            return


def test_nothing_that_may_be_none_is_needed_and_what_is_needed_is_named(results):
    """Put None, and then nothing, in the place of every value, one at a time: schema and reader agree on each."""
    found = results["texts"]["proof"]["comparison"] | {"reliability_before": None}
    choice = results["digits"]["choices"]["finetune"]
    result = plain(results["texts"] | {"choices": {"layerwise": choice}, "spectra": {"6.weight": {"eigenvalues": []}}})
    result |= {
        "proof": results["digits"]["proof"] | {"comparison": found},
        "test": {"samples": 90, "before": 70.0, "after": 84.0, "gain": 14.0},
        "trusted": {"method": "low-loss", "count": 90, "per_class": {"0": 45}, "shortfall": {}},
        "layers": result["layers"][-1:],
        "examples": result["examples"][:1],
    }
    validator, outcomes = Draft202012Validator(schema()), {"page": 0, "refused": 0}
    for way in places(result):
        for variant in changed(result, way):
            if validator.is_valid({"schema": SCHEMA} | variant):
                drawn = variant if way[0] == "proof" else variant | {"proof": None}  # charts take time
                assert render(drawn).endswith("</html>")
                outcomes["page"] += 1
            else:
                with pytest.raises(UsageError, match=rf"^the result .*{way[0]}"):
                    render(variant)
                outcomes["refused"] += 1
    assert min(outcomes.values()) > 50, outcomes


def test_a_stored_result_is_the_same_object_again(results, tmp_path):
    for result in results.values():
        typed = as_result(result)
        assert read_result(write_result(tmp_path / "r.json", typed, force=True)) == typed


def test_what_is_no_result_is_refused_in_one_line(tmp_path):
    wrong = {"{": "cannot be read", "[1]": "holds no JSON object", '{"schema": "x"}': "the schema 'x'"}
    for text, words in wrong.items():
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(UsageError, match=words):
            read_result(tmp_path / "r.json")
    with pytest.raises(UsageError, match="cannot be read"):
        read_result(tmp_path / "none.json")


def test_every_key_of_the_schema_is_described():
    parts = {"Result": schema(), **schema()["$defs"]}
    assert len(parts) > 10
    for name, part in parts.items():
        assert "----" not in part["description"], name
        assert all(key.get("description") for key in part["properties"].values()), name


# --- the model card


def test_a_model_card_has_metadata_that_the_hub_reads(results):
    from huggingface_hub import ModelCard

    text = model_card(results["digits"], name="digits-fixed", license="mit", base_model="org/digits", dataset="Digits")
    card = ModelCard(text)
    found = results["digits"]["proof"]["comparison"]
    assert card.data.license == "mit"
    assert card.data.base_model == "org/digits"
    assert "verifix" in card.data.tags
    by_metric = {r.metric_type: r for r in card.data.eval_results}
    assert by_metric["accuracy"].metric_value == pytest.approx(found["after"]["accuracy"], abs=1e-4)
    assert by_metric["accuracy"].dataset_name == "Digits"
    body = card.text
    for text in ("Improved: ", "## Limits", "undo_(model)", cases.SHA, results["digits"]["command"]):
        assert text in body
    assert f"| accuracy | {found['before']['accuracy']:.1f}% | {found['after']['accuracy']:.1f}% |" in body


@pytest.mark.parametrize(
    ("about", "library", "task", "tag", "base"),
    [
        (
            {"model": "hf:./d", "architecture": "BertForSequenceClassification", "task": "text-classification"},
            "transformers",
            "text-classification",
            "bert",
            None,
        ),
        ({"model": "hf-hub:org/vgg", "architecture": "VGG", "task": "image-classification"}, "timm",
         "image-classification", "vgg", "org/vgg"),
        ({"model": "py:net.py:build", "architecture": "Sequential"}, "pytorch", None, None, None),
    ],
)  # fmt: skip
def test_a_model_card_takes_library_task_and_tags_from_the_model(results, about, library, task, tag, base):
    from huggingface_hub import ModelCard

    data = ModelCard(model_card(results["digits"] | about)).data
    assert (data.library_name, data.pipeline_tag, data.base_model) == (library, task, base)
    assert data.tags[3:] == ([tag] if tag else [])


def test_a_model_card_names_the_files_that_lie_beside_it(results):
    text = model_card(
        results["digits"] | {"out": "runs/a/fixed.pt", "correction_file": "runs/a/fixed.correction.safetensors"}
    )
    assert "verifix undo fixed.pt --out fixed-original.pt" in text
    assert "verifix.Correction.load('fixed.correction.safetensors').undo_(model)" in text
    assert "FIXED" not in text


@pytest.mark.parametrize("name", CASES)
def test_a_model_card_claims_nothing_without_a_proof(results, name):
    from huggingface_hub import ModelCard

    card = ModelCard(model_card(results[name]))
    claims = name not in {"minimal", "training", "hostile"}  # hostile has a warning
    assert bool(card.data.eval_results) == claims
    assert yaml.safe_load(card.content.split("---")[1])["library_name"] == "pytorch"
    assert model_card(results[name]) == card.content


def test_names_are_no_markup_in_a_model_card(results):
    text = model_card(results["hostile"])
    head, body = text.split("---\n", 2)[1:]
    assert yaml.safe_load(head)["library_name"] == "pytorch"
    outside = re.sub(r"(?s)```.*?```|(`+)(?!`).*?(?<!`)\1(?!`)", "", body)
    assert not re.findall(r"(?<!\\)<[a-z/!]", outside)
    assert "](javascript" not in outside.replace("\\]", "")


def test_heavy_libraries_are_imported_when_used_and_a_missing_one_is_named_with_the_command():
    code = (
        "import sys, verifix.report\n"
        "print({'matplotlib', 'scipy', 'huggingface_hub'} & {m.split('.')[0] for m in sys.modules})\n"
        "sys.modules['huggingface_hub'] = None\n"
        "try:\n    verifix.report.model_card({})\nexcept ValueError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.startswith("set()\nhuggingface_hub cannot be imported (ModuleNotFoundError")
    assert done.stdout.endswith("install it with: pip install 'verifix[hub]'\n")
