from __future__ import annotations

from typing import ClassVar

import pytest
import torch

import verifix
from tests.cases import captured, projected, small_data, small_net
from tests.stage_cases import context_of
from verifix import UsageError
from verifix.model.weights import weights_replaced
from verifix.recipe.candidates import Grid
from verifix.recipe.stages import RECIPES, STAGES, Cost, Project, stages_of


class Shrink:
    """A later stage: scales the last layer by how large its captured inputs are, times the strength."""

    name = "shrink"
    seen: ClassVar[list] = []

    def obstacle(self, context):
        return ""

    def layers(self, context, strength):
        return {context.layers[-1].parameter: {"share": strength}}

    def candidates(self, context):
        return Grid(1, 10, (0.5,))

    def fit(self, context, strength):
        layer = context.layers[-1]
        moments = context.moments(layer)
        Shrink.seen.append((tuple(context.indices), moments.trace.clone(), dict(context.update)))
        return {layer.parameter: context.parameter(layer.parameter) * strength / moments.n}

    def cost(self, context):
        return Cost(0.0, 0.0, 0)


@pytest.fixture
def with_shrink(monkeypatch):
    monkeypatch.setitem(STAGES, "shrink", Shrink)
    monkeypatch.setattr(Shrink, "seen", [])


def test_a_later_stage_sees_the_weights_and_the_moments_that_the_earlier_one_left(with_shrink):
    model, (x, y) = small_net(bn=False).double().eval(), small_data()
    x = x.double()
    correction = verifix.correct(
        model,
        (x, y),
        alpha=20,
        recipe="project,shrink",
        progress=False,
        loss=lambda logits, _: logits.square().mean(dim=1),  # the smaller the better
        score=lambda logits, _: torch.zeros(()),
    )
    first = verifix.correct(model, (x, y), alpha=20, progress=False)
    table, _ = captured(first.model, x)
    last = list(table)[-1]
    (trace, update), *others = [(trace, update) for indices, trace, update in Shrink.seen if len(indices) == 80]
    assert not others
    torch.testing.assert_close(trace, table[last].trace)
    torch.testing.assert_close(update["0.weight"], first.corrected["0.weight"], rtol=0, atol=1e-13)
    expected = first.corrected["4.weight"] * correction.strengths["shrink"] / 80
    torch.testing.assert_close(correction.corrected["4.weight"], expected)
    assert torch.equal(correction.corrected["0.weight"], update["0.weight"])
    assert correction.strengths == {"project": 20.0, "shrink": pytest.approx(10**1.5)}
    assert correction.layer_strengths["shrink"] == {"4.weight": {"share": correction.strengths["shrink"]}}


def test_each_folds_later_stage_is_fitted_without_the_fold_under_its_own_earlier_stage(with_shrink):
    from verifix.cli.demo import digits

    data = digits.load(0)
    model = digits.trained(data, 0)
    samples = data.inputs[data.verified], data.labels[data.verified]
    correction = verifix.correct(model, samples, recipe="project,shrink", progress=False)
    subsets = {indices for indices, *_ in Shrink.seen if len(indices) < 200}
    assert len(subsets) == 5
    left_out = [i for s in subsets for i in set(range(200)) - set(s)]
    assert sorted(left_out) == list(range(200))
    weights = {indices: update["0.weight"] for indices, _, update in Shrink.seen if len(indices) < 200}
    assert len({float(w.sum()) for w in weights.values()}) == 5
    # Scaling the head changes confidence only, which the loss does not reward.
    assert correction.strengths["shrink"] is None
    assert correction.choices["shrink"].points[0].score == next(
        p.score for p in correction.curve if p.strength == correction.alpha
    )


def test_project_fits_the_projection_of_the_context_and_prepares_it_once():
    model, (x, y) = small_net().double().eval(), small_data()
    context = context_of(model, x.double(), y)
    stage = Project()
    update = stage.fit(context, 30.0)
    expected = projected(model, captured(model, x.double())[0], 30.0)
    assert update.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-13)
    kept = context.memo["factors"]
    stage.fit(context, 40.0)
    assert context.memo["factors"] is kept
    context.learned["kept"] = 1
    with context.fresh() as fresh:
        assert (fresh.memo, fresh.learned is context.learned) == ({}, True)
        stage.fit(fresh, 30.0)
        assert fresh.memo
    assert not fresh.memo
    assert context.memo["factors"] is kept
    later = context.after("project", 30.0, update)
    assert (later.memo, later.learned, later.strengths) == ({}, {}, {"project": 30.0})
    assert later.parameter("0.weight") is update["0.weight"]
    assert torch.equal(later.original("0.weight"), model[0].weight)
    with later.corrected():
        assert torch.equal(model[0].weight, update["0.weight"])
    assert stage.layers(context, 30.0) == {name: {"alpha": 30.0} for name in expected}
    assert stage.obstacle(context) == ""


def test_cost_counts_the_multiplications_of_each_layer():
    model, (x, y) = small_net().double().eval(), small_data()
    cost = Project().cost(context_of(model, x.double(), y))
    layers = [(16, 8), (16, 16), (3, 16)]
    products = [2 * outputs * width**2 for outputs, width in layers]
    again = sum(width**3 / 3 + 2 * p for (_, width), p in zip(layers, products, strict=True))
    assert cost.flops_again == pytest.approx(again)
    assert cost.flops == pytest.approx(again + sum(products))
    assert cost.nbytes == sum(8 * (w**2 + 2 * o * w) for o, w in layers)


def test_recipes_name_stages():
    assert [s.name for s in stages_of("verifix")] == ["project"]
    assert [s.name for s in stages_of("auto")] == list(STAGES)
    assert [s.name for s in stages_of("refit,project")] == ["refit", "project"]
    assert set(RECIPES["verifix"]) <= set(STAGES)
    for bad in ("magic", "project,magic", "project,project", "project,", "", "auto,project"):
        with pytest.raises(UsageError, match="it must be 'verifix' or 'auto', or stages among") as caught:
            stages_of(bad)
        assert "\n" not in str(caught.value)


def test_replaced_weights_come_back_also_after_an_error():
    model = small_net()
    before = model[0].weight.detach().clone()

    def interrupted() -> None:
        with weights_replaced(model, {"0.weight": torch.zeros(16, 8)}):
            assert not model[0].weight.any()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert torch.equal(model[0].weight, before)
