"""One bar for the whole of a correction and its proof, and what is said before it."""

from __future__ import annotations

import re

import pytest
import torch

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix.progress import Work, one_bar, progress_bar, quiet, tell, untold

HOW = {"verified_from": "unseen", "drawn": "random", "recipe": "project,refit", "check_inputs": False}


@pytest.fixture(scope="module")
def learned():
    torch.manual_seed(0)
    x, y = small_data(80)
    return memorised(small_net(), x, y), x, y


def bars(text: str) -> set[str]:
    """Return the titles of the bars that were drawn."""
    return set(re.findall(r"\r([^\r\n:|]+): +\d+%\|", text))


def test_a_correction_and_its_proof_show_one_bar_each_and_say_first_what_they_do(learned, capsys):
    model, x, y = learned
    correction = verifix.correct(model, x, y, **HOW)
    said = capsys.readouterr().err
    assert bars(said) == {"correction"}
    lines = [line for line in re.split(r"[\r\n]+", said) if "%|" not in line and line.strip()]
    assert re.fullmatch(r"correction: 2 paths of stages in 5 folds", lines[0])
    assert lines[1].startswith("project: ")
    assert re.search(r"about \d+ s left, correction \d/3", said)
    verifix.prove(model, x, y, **HOW)
    said = capsys.readouterr().err
    assert bars(said) == {"proof"}
    assert re.search(r"proof: 5 corrections, each judged on samples it has not seen\n", said)
    assert "project: " not in said
    assert correction.changed
    correction.prove()
    said = capsys.readouterr().err
    assert bars(said) == {"proof"}
    assert re.search(r"it has not seen, about \d+ s", said)


def test_a_correction_is_the_same_whether_anybody_sees_it_or_not(learned, capsys):
    model, x, y = learned
    how = HOW | {"recipe": "project,refit,finetune", "folds": 2}
    seen, unseen = (verifix.correct(model, x, y, **how, progress=on) for on in (True, False))
    assert "about" in capsys.readouterr().err
    assert seen.strengths == unseen.strengths
    assert seen.corrected.keys() == unseen.corrected.keys()
    assert all(torch.equal(seen.corrected[name], unseen.corrected[name]) for name in seen.corrected)


def test_nothing_is_foreseen_where_nobody_sees_it(learned, capsys):
    model, x, y = learned
    verifix.correct(model, x, y, **HOW, progress=False)
    with quiet(on=True):
        verifix.correct(model, x, y, **HOW)
    assert capsys.readouterr().err == ""


def test_what_is_left_follows_from_what_the_parts_that_are_over_took():
    work = Work(None)
    assert work.left is None
    work.foresee([1000.0, 3000.0])
    assert work.left == pytest.approx(4000, abs=5)
    work.passed(1)  # at once: what is left is quicker as well, as far as one part of many tells
    assert work.left == pytest.approx(3000 * 400 / 1400, abs=5)
    work.passed(1)
    assert work.left is None
    work.foresee([1.0, 1.0, 2.0], known=False)
    assert work.left is None
    work._since -= 100  # as if the first part had taken so long
    work.passed(1)
    assert work.left == pytest.approx(300, abs=5)


def test_a_bar_within_another_is_told_in_words(capsys):
    with one_bar("whole", True), progress_bar("outer", 2, True) as outer:
        with one_bar("another", True), progress_bar("inner", 7, True), untold():
            tell("not said", True)
        tell("said", True)
        outer.update()
    said = capsys.readouterr().err
    assert bars(said) == {"whole"}
    assert "not said" not in said
    assert "said" in said
