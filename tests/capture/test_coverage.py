"""The survey of coverage: the same code on a few small models, what it found, and its page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks.coverage import checked, summary, surveyed, unexplained
from benchmarks.coverage_models import TIMM, Case
from benchmarks.coverage_table import BEGIN, END, PROMISED, percent, tables
from torch import nn

from verifix import inspect

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def record():
    return json.loads((ROOT / "benchmarks" / "results" / "coverage.json").read_text(encoding="utf-8"))


def test_the_page_holds_the_tables_of_the_survey(record):
    page = (ROOT / "docs" / "coverage.md").read_text(encoding="utf-8")
    assert page.split(BEGIN)[1].split(END)[0].strip() == tables(record)


def test_every_parameter_of_every_model_is_accounted_for(record):
    models = [entry for entry in record["models"] if "skipped" not in entry]
    for entry in models:
        assert not entry["unexplained"], entry["name"]
        assert not entry["contradictions"], entry["name"]
        elements = entry["elements"]
        multiplied = elements["corrected"] + elements["skipped"]
        assert entry["share"] == pytest.approx(elements["corrected"] / multiplied)
        left = sum(group["elements"] for group in entry["reasons"])
        assert left == elements["skipped"] + elements["not_multiplied"]
    families = {library: {x["family"] for x in models if x["library"] == library} for library in PROMISED}
    assert len(families["timm"]) >= 90
    assert len(families["torchvision"]) >= 13
    assert len(families["transformers"]) >= 18
    assert set(record["unsurveyed_timm_families"]) == set()


def test_what_is_promised_is_corrected(record):
    shares = {(entry["library"], entry["name"]): entry.get("share", 0) for entry in record["models"]}
    for library, names in PROMISED.items():
        for name in names:
            assert shares[library, name] >= 0.99, name


class _Small(nn.Module):
    """A corrected layer, a scale, a position, a copy that multiplies, and a part that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.ones(1, 4))
        self.position = nn.Parameter(torch.zeros(1, 4))
        self.copied = nn.Parameter(torch.eye(4))
        self.spare = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer((x * self.scale + self.position) @ self.copied.clone())


def test_the_survey_of_a_small_model():
    entry = surveyed(Case("none", "small", "small", _Small, lambda _: torch.randn(2, 4)))
    assert entry["elements"] == {"corrected": 12, "skipped": 20, "not_multiplied": 4, "unused": 16}
    assert (entry["unexplained"], entry["contradictions"], entry["cautious"]) == (0, [], 0)
    assert {group["example"]: group["standing"] for group in entry["reasons"]} == {
        "scale": "skipped",
        "copied": "skipped",
        "position": "not_multiplied",
    }


@pytest.mark.parametrize(
    ("status", "name"), [("unused", "layer.weight"), ("unused", "position"), ("corrected", "scale")]
)
def test_a_wrong_account_is_contradicted(status, name):
    model, x = _Small().eval(), torch.randn(2, 4)
    survey = inspect(model, x)
    wrong = [replace(a, status=status) if a.parameter == name else a for a in survey.accounts]
    found = checked(model, x, replace(survey, accounts=tuple(wrong)))["contradictions"]
    assert any(name in line for line in found)
    assert torch.isfinite(model(x)).all()


def test_an_addition_that_is_a_product_is_contradicted():
    model, x = _Small().eval(), torch.randn(2, 4)
    survey = inspect(model, x)
    wrong = [replace(a, multiplies=False) if a.parameter == "copied" else a for a in survey.accounts]
    (line,) = checked(model, x, replace(survey, accounts=tuple(wrong)))["contradictions"]
    assert line.startswith("copied: skipped (added), but it meets mm")


def test_a_parameter_without_an_account_is_unexplained():
    model, x = _Small().eval(), torch.randn(2, 4)
    survey = inspect(model, x)
    fewer = tuple(a for a in survey.accounts if a.parameter != "scale")
    silent = tuple(replace(a, reason="") for a in survey.accounts)
    assert unexplained(model, survey) == []
    assert unexplained(model, replace(survey, accounts=fewer)) == ["scale"]
    assert unexplained(model, replace(survey, accounts=silent)) == ["scale", "position", "copied"]
    assert summary(survey)["elements"]["unused"] == 16


def test_families_are_built_and_surveyed_as_in_the_benchmark(vision, record):
    from benchmarks.coverage_models import of_timm, of_torchvision
    from benchmarks.coverage_transformers import of_transformers

    wanted = {"starnet_s050", "shufflenet_v2_x0_5", "DistilBertForSequenceClassification"}
    stored = {entry["name"]: entry for entry in record["models"]}
    for case in (*of_torchvision(), *of_timm(), *of_transformers()):
        if case.name in wanted:
            entry = surveyed(case)
            for key in ("share", "elements", "reasons", "unexplained", "contradictions"):
                assert entry[key] == stored[case.name][key], (case.name, key)
            wanted.discard(case.name)
    assert not wanted
    assert set(vision[1].list_modules()) == set(TIMM)


def test_a_share_is_never_rounded_up_to_all():
    assert (percent(1.0), percent(0.99999), percent(0.9)) == ("100.00%", "99.99%", "90.00%")
