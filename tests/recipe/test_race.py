"""The race of strengths: it must choose what fitting all strengths in all folds chooses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix.cli.demo import digits
from verifix.recipe import crossfit
from verifix.recipe.decision import of_other_kinds
from verifix.recipe.stages.base import Stage
from verifix.recipe.stages.refit import Refit


class Shares(nn.Module):
    """Its outputs are logarithms of shares."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        return self.net(x).log_softmax(1)


NETS = {"plain": small_net, "logarithms": Shares}
FEW = ("project", "refit")


@pytest.fixture(scope="module")
def trained():
    data = digits.load(3)
    return data, digits.trained(data, 3)


def corrected(trained, count, recipe):
    data, model = trained
    chosen = data.verified[:count]
    return verifix.correct(
        model, (data.inputs[chosen], data.labels[chosen]), recipe=recipe, progress=False, check_inputs=False
    )


@pytest.mark.parametrize("count", [110, 200])
def test_the_race_chooses_what_all_folds_choose_and_scores_it_alike(trained, count, monkeypatch):
    raced = corrected(trained, count, ",".join(FEW))
    monkeypatch.setattr(crossfit, "ENOUGH", math.inf)
    whole = corrected(trained, count, ",".join(FEW))
    assert sum(len(choice.dropped) for choice in raced.choices.values()) > 0
    assert raced.strengths == whole.strengths
    assert raced.reason == whole.reason
    for one, other in zip(raced.paths, whole.paths, strict=True):  # a last stage that loses is not raced to its end
        assert one.stages == other.stages
        assert one.point is None or (one.strengths, one.point) == (other.strengths, other.point)
    for stage, one in raced.choices.items():
        other = whole.choices[stage]
        assert other.dropped == ()
        every = {point.strength: point for point in other.points}
        assert all(point == every[point.strength] for point in one.points)
        assert {*one.dropped, *(p.strength for p in one.points)} == every.keys()


def test_the_better_way_to_train_goes_on_alone(trained, short_training, monkeypatch):
    choice = corrected(trained, 200, "finetune").choices["finetune"]
    points = [point.strength for point in choice.points if point.strength is not None]
    (jitter,) = {jitter for _, _, jitter in points}
    assert {1 - jitter} <= {other for _, _, other in choice.dropped}
    monkeypatch.setattr(crossfit, "ENOUGH", math.inf)
    whole = corrected(trained, 200, "finetune").choices["finetune"]
    assert {jitter for point in whole.points[1:] for _, _, jitter in [point.strength]} == {0.0, 1.0}
    assert {*points, *choice.dropped} == {point.strength for point in whole.points[1:]}


def test_kinds_are_told_by_one_number_and_the_best_strength_decides():
    losses = {
        None: torch.tensor([0.0, 0.0]),
        (1.0, 0.0): torch.tensor([5.0, 1.0]),
        (2.0, 0.0): torch.tensor([1.0, 2.0]),
    }
    losses |= {(1.0, 1.0): torch.tensor([2.0, 2.5]), (2.0, 1.0): torch.tensor([4.0, 4.5])}
    kinds = [strength for strength in losses if strength is not None]
    assert of_other_kinds(losses, kinds, [1]) == {(1.0, 1.0): 0.75, (2.0, 1.0): 2.75}
    assert of_other_kinds(losses, kinds, [0]) == {(1.0, 0.0): 1.5, (1.0, 1.0): 0.75}


def test_what_was_dropped_is_said(trained):
    choice = corrected(trained, 200, "verifix").choices["project"]
    assert 1e6 in choice.dropped
    assert "dropped" not in choice.reason
    assert "1e+06 " in choice.told
    assert choice.told.endswith("dropped after the first folds, losing there")


@pytest.mark.parametrize("kind", NETS)
def test_logits_from_features_are_those_of_the_model(kind, monkeypatch):
    x, y = small_data(120)
    model = memorised(NETS[kind](), x, y)
    found, ways = [], []
    plain = Stage.predict

    def checked(self, strength):
        logits = original(self, strength)
        ways.append(self.independent)
        found.append(float((logits - plain(self, strength)).abs().max() / logits.abs().max()))
        return logits

    original = Refit.predict
    monkeypatch.setattr(Refit, "predict", checked)
    verifix.correct(model, (x, y), recipe="refit", progress=False, check_inputs=False)
    assert found
    assert max(found) < 1e-5
    assert set(ways) == {kind == "plain"}
