"""Results in a notebook: shown, drawn, tabulated and reported; and a notebook that is run from beginning to end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import CheckpointError, UsageError
from verifix.cli.demo import digits

QUIET = {"progress": False, "check_inputs": False}
NASTY = ["<b>bold</b>", "x & y", "$a$ \x1b[31m"]


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(0)
    x, y = small_data(90)
    model = memorised(small_net(), x, y)
    how = {"verified_from": "unseen", "drawn": "random", "classes": NASTY, "recipe": "verifix", **QUIET}
    correction = verifix.correct(model, x, y, **how)
    return model, x, y, correction, correction.prove()


def test_what_is_shown_begins_with_the_verdict_has_a_table_and_a_chart_and_is_escaped(case):
    model, x, y, correction, proof = case
    score = verifix.score(model, x, y, classes=NASTY, progress=False)
    for shown, first in (
        (correction._repr_html_(), correction.summary().splitlines()[0]),
        (proof._repr_html_(), proof.summary().splitlines()[0]),
        (proof.comparison._repr_html_(), proof.comparison.sentence()),
        (score._repr_html_(), score.summary().splitlines()[0]),
    ):
        text = re.sub("<[^>]+>", "\n", shown)
        assert text.strip().splitlines()[0] == first
        assert "<table>" in shown
        assert "<b>" not in shown
        assert "\x1b" not in shown
        assert shown.count("<div") == shown.count("</div>")
    assert "&lt;b&gt;bold&lt;/b&gt;" in score._repr_html_()
    for shown in (correction, proof):
        assert '<svg class="chart"' in shown._repr_html_()


def test_results_draw_on_axes_that_are_given_and_return_them(case):
    model, x, y, correction, proof = case
    given = verifix.correct(model, x, y, alpha=10.0, progress=False)
    paths = verifix.correct(model, x, y, recipe="refit", progress=False)
    score = verifix.score(model, x, y, classes=["<b>", "x & y", "$a_{b$"], progress=False)
    for result in (correction, given, paths, proof, proof.comparison, score):
        axes = Figure().subplots()
        assert result.plot(axes) is axes
        axes.figure.savefig("/dev/null", format="svg")  # what a name holds must not break the drawing
    shown = correction.plot(Figure().subplots())
    drawn = shown.containers[0].lines[0].get_data()
    points = [point for point in correction.curve if point.strength is not None]
    assert [list(map(float, values)) for values in drawn] == [[p.strength for p in points], [p.score for p in points]]
    assert [text.get_text() for text in shown.get_legend().get_texts()] == [
        "no change",
        f"chosen: {correction.alpha:.4g}",
    ]


def test_tables_hold_what_was_tried_and_what_became_of_each_sample(case):
    model, x, y, correction, proof = case
    tried = correction.to_frame()
    assert list(tried["stage"].dropna().unique()) == ["project"]
    assert len(tried) == len(correction.paths) + len(correction.curve)
    assert tried[tried["taken"] & tried["stage"].notna()]["strength"].tolist() == [correction.alpha]
    samples = proof.to_frame()
    assert samples["sample"].tolist() == list(range(90))
    assert (samples["outcome"] == "fixed").sum() == proof.comparison.fixed
    assert (samples["outcome"] == "broken").sum() == proof.comparison.broken
    right = 100 * (samples["after"] == samples["label"]).mean()
    assert right == pytest.approx(proof.comparison.after.accuracy)
    scores = verifix.score(model, x, y, progress=False).to_frame()
    assert scores["class"].tolist() == [0, 1, 2]


def test_a_proof_of_a_correction_uses_its_samples_and_settings(case, tmp_path):
    model, x, y, correction, proof = case
    again = verifix.prove(model, x, y, verified_from="unseen", drawn="random", recipe="verifix", **QUIET)
    assert torch.equal(proof.after, again.after)
    assert proof.comparison == again.comparison
    assert proof.correction is correction
    assert proof.report(tmp_path / "r.html").read_text(encoding="utf-8").count("&lt;b&gt;bold")
    correction.report(tmp_path / "c.html")
    with pytest.raises(UsageError, match="exists already"):
        correction.report(tmp_path / "c.html")
    with pytest.raises(UsageError, match=r"a Proof alone has no report; write that of correction.prove\(\)"):
        again.report(tmp_path / "no.html")
    correction.save(tmp_path / "c.safetensors")
    loaded = verifix.Correction.load(tmp_path / "c.safetensors")
    assert loaded.class_names == tuple(NASTY)
    with pytest.raises(UsageError, match="loaded from a file does not know its samples"):
        loaded.prove()


def test_a_proof_needs_the_model_as_it_was_and_to_be_told_where_the_samples_are_from(case):
    model, x, y, *_ = case
    correction = verifix.correct(model, x, y, alpha=10.0, **QUIET)
    with pytest.raises(UsageError, match="a proof needs verified_from, one of 'unseen', 'training', 'trusted'"):
        correction.prove()
    assert correction.prove(verified_from="unseen").verdict
    correction.apply_(model)
    try:
        with pytest.raises(CheckpointError, match="the model has other weights than those that were corrected"):
            correction.prove(verified_from="unseen")
    finally:
        correction.undo_(model)


def test_no_change_has_nothing_to_prove(case):
    model, x, _, *_ = case
    meaningless = torch.arange(90)[torch.randperm(90)] % 3
    how = {"recipe": "verifix", "check_labels": False, "verified_from": "unseen", **QUIET}
    correction = verifix.correct(model, x, meaningless, **how)
    assert not correction.changed
    assert correction.summary().startswith("No change, from 90 verified samples (unseen): ")
    with pytest.raises(UsageError, match="no change won, so there is no gain to prove"):
        correction.prove(verified_from="unseen")


CELLS = (
    "import torch, verifix",
    "model = torch.load('net.pt', weights_only=False)\nx, y = torch.load('verified.pt')",
    "correction = verifix.correct(model, x.numpy(), y.tolist(), verified_from='unseen', drawn='random',\n"
    "                             recipe='verifix')\ncorrection",
    "correction.plot();",
    "proof = correction.prove()\nproof",
    "proof.to_frame().query(\"outcome == 'broken'\")",
    "proof.report('report.html')",
    "verifix.compare(model, correction.model, x, y)",
)


def test_a_notebook_shows_the_verdict_and_a_picture(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    data = digits.load(0)
    torch.save(digits.trained(data, 0), tmp_path / "net.pt")
    torch.save((data.inputs[data.verified], data.labels[data.verified]), tmp_path / "verified.pt")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell["outputs"] for cell in notebook.cells]
    found = {mime for each in outputs for output in each for mime in output.get("data", ())}
    assert {"text/html", "image/png"} <= found
    html = ["".join(output["data"].get("text/html", "") for output in each if "data" in output) for each in outputs]
    assert "Corrected by project" in html[2]
    assert "<svg" in html[2]
    assert "Improved: " in html[4]
    assert "Improved: " in html[7]
    assert "<table" in html[5]
    assert (Path(tmp_path) / "report.html").stat().st_size > 10_000
    assert not [output for each in outputs for output in each if output["output_type"] == "error"]
