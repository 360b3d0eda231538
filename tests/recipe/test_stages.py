from __future__ import annotations

import math
import re
from dataclasses import FrozenInstanceError, fields
from typing import ClassVar

import pytest
import torch

import verifix
from tests.cases import captured, projected, small_data, small_net
from tests.stage_cases import context_of, memorised, same
from verifix import Grid, Listed, Stage, UsageError, register_stage
from verifix.model.weights import weights_replaced
from verifix.options import CorrectOptions
from verifix.recipe.context import Context
from verifix.recipe.plan import Plan, planned, stages_of
from verifix.recipe.stages import PATHS, STAGES, Project, recipes
from verifix.report.correction_section import stages as stages_shown
from verifix.report.result import result_of


class Shrink(Stage):
    """A later stage: scales the last layer by how large its captured inputs are, times the strength."""

    name = "shrink"
    about = "Scales the last layer."
    seen: ClassVar[list] = []

    def candidates(self):
        return Grid(1, 10, (0.5,))

    def fit(self, strength):
        layer = self.context.layers[-1]
        moments = self.context.moments()(layer)
        Shrink.seen.append((tuple(self.context.indices), moments.trace.clone(), dict(self.context.update)))
        return {layer.parameter: self.context.parameter(layer.parameter) * strength / moments.n}

    def layers(self, strength):
        return {self.context.layers[-1].parameter: {"share": strength}}


@pytest.fixture
def registry(monkeypatch):
    """The table of stages, which a test may add to."""
    own = dict(STAGES)
    for module in ("stages", "plan", "search"):
        monkeypatch.setattr(f"verifix.recipe.{module}.STAGES", own)
    return own


@pytest.fixture
def with_shrink(registry, monkeypatch):
    register_stage(Shrink)
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


def test_each_folds_later_stage_is_fitted_without_the_fold_under_its_own_earlier_stage(with_shrink, monkeypatch):
    from verifix.cli.demo import digits

    monkeypatch.setattr("verifix.recipe.crossfit.ENOUGH", math.inf)  # none is dropped before the last fold

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
    _, project, both = correction.paths
    assert project.point.score == next(p.score for p in correction.curve if p.strength == correction.alpha)
    assert both.strengths == {"project": correction.alpha, "shrink": None}
    assert (both.point, both.reason) == (None, "no change: no strength lowers the loss")
    assert set(correction.choices) == {"project"}


def test_project_fits_the_projection_of_the_context_and_prepares_it_once():
    model, (x, y) = small_net().double().eval(), small_data()
    context = context_of(model, x.double(), y)
    fitter = Project(context)
    update = fitter.fit(30.0)
    expected = projected(model, captured(model, x.double())[0], 30.0)
    assert update.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-13)
    kept = fitter.factors
    with fitter.round():
        fitter.fit(40.0)
        assert fitter.factors is kept
    assert not fitter.factors

    def interrupted() -> None:
        with fitter.round():
            assert same(fitter.fit(30.0), update)
            assert fitter.factors
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert not fitter.factors
    later = context.after("project", 30.0, update)
    assert (later.logits, later.strengths) == (None, {"project": 30.0})
    assert later.parameter("0.weight") is update["0.weight"]
    assert torch.equal(later.original("0.weight"), model[0].weight)
    with later.corrected():
        assert torch.equal(model[0].weight, update["0.weight"])
    assert fitter.layers(30.0) == {name: {"alpha": 30.0} for name in expected}
    assert fitter.obstacle() == ""


def test_recipes_name_stages():
    assert stages_of("verifix") == ("project",)
    assert stages_of("refit,project") == ("refit", "project")
    assert set(recipes()["verifix"]) <= set(STAGES)
    for bad in ("magic", "project,magic", "project,project", "project,", "", "auto,project"):
        with pytest.raises(UsageError, match="it must be 'auto' or 'verifix', or stages among") as caught:
            stages_of(bad)
        assert "\n" not in str(caught.value)


def test_a_recipe_is_one_path_and_auto_is_several_that_share_what_they_begin_with():
    one = planned(CorrectOptions(recipe="project,layerwise,refit"))
    assert one.prefixes == (("project",), ("project", "layerwise"), ("project", "layerwise", "refit"))
    assert (one.base, one.extensions, one.choosing) == ((), (), True)
    auto = planned(CorrectOptions(), jittered=False)
    assert auto.paths == PATHS
    assert len(set(auto.prefixes)) == len(auto.prefixes)
    assert set(auto.prefixes) == {path[:k] for path in PATHS for k in range(1, len(path) + 1)}
    for prefix in auto.prefixes:
        assert prefix[-1] in auto.after(prefix[:-1])
    assert [stage.name for stage in auto.stages] == list(dict.fromkeys(name for path in PATHS for name in path))


def test_what_does_nothing_is_left_out_only_where_all_that_follows_is_tried_without_it():
    both, one = Plan((("a", "c"), ("b", "a", "c"))), Plan((("a",), ("b", "a", "c")), base=("a",))
    assert both.repeats(("b", "a"), ("a",))
    assert both.repeats(("b", "a", "c"), ("a", "c"))
    assert not one.repeats(("b", "a"), ("a",))  # c is to be tried, and is not tried after a alone
    assert not both.repeats(("a", "extension"), ("extension",))


def test_a_given_alpha_with_the_recipe_auto_is_the_stage_alone_whose_strength_it_is():
    alone = planned(CorrectOptions(alpha=30.0))
    assert (alone.paths, alone.base, alone.choosing) == ((("project",),), ("project",), False)
    both = planned(CorrectOptions(alpha=30.0, recipe="refit,project"))
    assert (both.base, both.choosing) == (("project",), True)
    assert both.paths == (("project",), ("refit", "project"))  # what the whole path is compared with comes first


def test_a_context_has_a_handful_of_fields_and_nothing_in_it_changes():
    assert len(fields(Context)) == 6
    context = context_of(small_net().eval(), *small_data())
    with pytest.raises(FrozenInstanceError):
        context.folds = []


def test_a_stage_takes_one_class_and_one_call(registry):
    class Scale(Stage):
        name = "scale"
        about = "Scales the last bias."

        def candidates(self):
            return Listed((1.0, 2.0))

        def fit(self, strength):
            bias = self.context.run.collected.biases[self.context.layers[-1]].parameter
            return {bias: self.context.writable(bias).mul_(strength)}

    register_stage(Scale)
    x, y = small_data(80)
    model = memorised(small_net(), x, y)
    correction = verifix.correct(model, (x, y), recipe="scale", progress=False)
    choice = correction.choices["scale"]
    assert sorted([*choice.dropped, *(point.strength for point in choice.points[1:])]) == [1.0, 2.0]
    assert f"  scale: {choice.reason}" in correction.summary(verbose=True)
    shown = stages_shown(result_of(correction))[0]
    assert (shown["name"], shown["meaning"]) == ("scale", "Scales the last bias.")
    with pytest.raises(UsageError, match=f"{list(STAGES)[-1]}, scale, each once"):
        verifix.correct(model, (x, y), recipe="magic", progress=False)
    with pytest.raises(verifix.DataError, match="a nested proof needs at least 63"):
        verifix.prove(model, (x[:62], y[:62]), recipe="scale", progress=False, verified_from="unseen")
    assert (
        len(
            verifix.prove(
                model, (x, y), recipe="scale", check_inputs=False, progress=False, verified_from="unseen"
            ).folds
        )
        == 5
    )


def test_a_stage_runs_in_auto_only_if_its_class_says_so_and_then_after_the_paths(registry):
    plain = planned(CorrectOptions())
    register_stage(Shrink)
    assert planned(CorrectOptions()) == plain
    register_stage(type("Also", (Shrink,), {"name": "also", "automatic": True}))
    found = planned(CorrectOptions())
    assert (found.paths, found.extensions) == (plain.paths, ("also",))
    assert [stage.name for stage in found.stages] == [*(stage.name for stage in plain.stages), "also"]
    for settings in ({"recipe": "verifix"}, {"alpha": 30.0}):
        assert [stage.name for stage in planned(CorrectOptions(**settings)).stages] == ["project"]


class Sharpen(Stage):
    """Multiplies the head, and so changes how sure the model is."""

    name = "sharpen"
    about = "Multiplies the head."
    automatic = True
    before: ClassVar[list] = []

    def candidates(self):
        return Listed((1.25, 1.5))

    def fit(self, strength):
        Sharpen.before.append(dict(self.context.strengths))
        return {name: self.context.parameter(name) * strength for name in ("4.weight", "4.bias")}


def sure_of_it(logits, labels):
    """A loss that a surer model lowers."""
    return -logits.abs().mean(1).log()


@pytest.mark.parametrize("helps", [True, False])
def test_a_users_automatic_stage_is_tried_once_after_the_best_path(registry, monkeypatch, helps):
    register_stage(Sharpen)
    monkeypatch.setattr(Sharpen, "before", [])
    monkeypatch.setattr("verifix.recipe.plan.PATHS", (("project", "refit"), ("refit",)))
    x, y = small_data(80)
    model = memorised(small_net(bn=False), x, torch.where(torch.arange(80) % 3 == 0, (y + 1) % 3, y))
    loss = {"loss": sure_of_it, "score": lambda logits, _: torch.zeros(())} if helps else {}
    correction = verifix.correct(model, (x, y), progress=False, **loss)
    *others, last = correction.paths
    best = min((path for path in others if path.point is not None), key=lambda path: path.point.loss)
    effective = {name: strength for name, strength in best.strengths.items() if strength is not None}
    assert last.stages == (*best.stages, "sharpen")
    assert {name: last.strengths[name] for name in best.strengths} == best.strengths
    assert not any("sharpen" in path.stages for path in others)
    assert Sharpen.before
    assert all(before == effective for before in Sharpen.before)
    if helps:
        assert correction.strengths == last.strengths
        assert last.strengths["sharpen"] == 1.5
        assert last.point.loss < best.point.loss
    else:  # as sure at the best temperature as before
        assert last.strengths["sharpen"] is None
        assert correction.strengths == best.strengths


def test_a_stage_that_is_defined_again_in_its_place_takes_the_place_of_the_old_one(registry):
    register_stage(Shrink)
    again = type("Shrink", (Shrink,), {"__module__": Shrink.__module__, "__qualname__": Shrink.__qualname__})
    assert register_stage(again) is registry["shrink"] is again


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (object, "it must be a class built on verifix.Stage"),
        (lambda: int, "it must be a class built on verifix.Stage"),
        (lambda: type("A", (Shrink,), {"name": "project"}), "'project' exists already; choose another name"),
        (lambda: type("A", (Shrink,), {"name": "auto"}), "'auto' exists already"),
        (lambda: type("A", (Shrink,), {"name": "a,b"}), "is named 'a,b'; it must be a word"),
        (lambda: type("A", (Shrink,), {"name": ""}), "is named ''; it must be a word"),
        (lambda: type("A", (Stage,), {"name": "a"}), "stage A has no about and no candidates and no fit"),
        (lambda: type("A", (Stage,), {"fit": Shrink.fit}), "has no name and no about and no candidates; define"),
    ],
    ids=["no stage", "a function", "taken", "a recipe", "two words", "no word", "nothing to fit", "no name"],
)
def test_what_is_no_stage_or_has_a_name_that_is_taken_is_refused_in_one_line(registry, made, message):
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        register_stage(made())
    assert "\n" not in str(caught.value)
    assert registry == STAGES


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
