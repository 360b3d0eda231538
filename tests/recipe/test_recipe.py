"""The whole recipe: what each stage may see, what it must give back, and what comes of it on the digits."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import ALONE, memorised, same
from verifix import CheckpointError, Correction
from verifix.cli.demo import digits
from verifix.cli.demo.training import percent_right
from verifix.recipe.stages import STAGES

EVERY = ",".join(ALONE)


def noisy_case():
    """A network with BatchNorm that memorised wrong labels, and verified samples."""
    x, y = small_data(80)
    model = memorised(small_net(), x, torch.where(torch.arange(80) % 3 == 0, (y + 1) % 3, y))
    model[1].running_mean.add_(0.2)
    model[1].running_var.mul_(3.0)
    return model, x, y


@pytest.mark.usefixtures("short_training")
@pytest.mark.parametrize("recipe", ["auto", EVERY], ids=["auto", "every stage"])
def test_each_fold_is_predicted_only_by_stages_that_were_fitted_without_it(monkeypatch, recipe):
    fits: list[tuple[str, frozenset, frozenset]] = []
    updates: list[tuple[dict, frozenset]] = []
    for kind in STAGES.values():

        def spied(self, strength, real=kind.fit):
            context = self.context
            read: set[int] = set()
            real_batches = type(context.run.samples).batches

            def noted(samples, indices, size):
                read.update(map(int, indices))
                return real_batches(samples, indices, size)

            with monkeypatch.context() as patch:
                patch.setattr(type(context.run.samples), "batches", noted)
                update = real(self, strength)
            fits.append((self.name, frozenset(context.indices), frozenset(read)))
            updates.append((update, frozenset(context.indices)))
            return update

        monkeypatch.setattr(kind, "fit", spied)
    predictions: list[tuple[frozenset, frozenset]] = []
    makers: set[frozenset] = set()
    from verifix.recipe.context import Context

    real_predict = Context.predict

    def predict(self, indices, update):
        predictions.append((frozenset(self.indices), frozenset(map(int, indices))))
        makers.update(own - frozenset(self.indices) for made, own in updates if made is update)
        return real_predict(self, indices, update)

    monkeypatch.setattr(Context, "predict", predict)
    model, x, y = noisy_case()
    verifix.correct(model, (x, y), recipe=recipe, progress=False)
    everything = frozenset(range(80))
    for name, own, read in fits:
        assert read <= own, name  # and so never a sample of a fold that is held out
    subsets = {own for _, own, _ in fits} - {everything}
    assert len(subsets) == 5
    assert sorted(i for own in subsets for i in everything - own) == list(range(80))
    scored = [(own, asked) for own, asked in predictions if not asked <= own]
    assert scored
    assert all(not asked & own for own, asked in scored)
    assert any(asked == everything - own for own, asked in scored)
    assert makers == {frozenset()}  # what is on top of a fold's weights was fitted on nothing but its samples
    assert {"project", "refit", "finetune"} <= {name for name, _, _ in fits}


@pytest.mark.usefixtures("short_training")
def test_later_stages_of_a_fold_work_on_what_earlier_ones_made_of_that_fold(monkeypatch, keep_all):
    seen: dict[str, list] = {name: [] for name in ALONE}
    for kind in map(STAGES.get, ALONE):

        def spied(self, strength, real=kind.fit):
            update = real(self, strength)
            seen[self.name].append((frozenset(self.context.indices), dict(self.context.update), dict(update)))
            return update

        monkeypatch.setattr(kind, "fit", spied)
    model, x, y = noisy_case()
    correction = verifix.correct(model, (x, y), recipe=EVERY, progress=False)
    so_far: dict[frozenset, dict] = {}
    for name, fits in seen.items():
        made: dict[frozenset, dict] = {}
        for own, before, update in fits:
            assert same(before, so_far.get(own, {})), name
            assert same(update, made.setdefault(own, update)), name
        assert len(made) == 6
        so_far = {own: {**so_far.get(own, {}), **update} for own, update in made.items()}
    for key, value in so_far[frozenset(range(80))].items():
        assert torch.equal(correction.corrected[key], value), key
    assert set(correction.layer_strengths) == set(ALONE)
    assert correction.layer_strengths["layerwise"].keys() == {"0.weight", "3.weight", "5.weight"}


def state_of(model: nn.Module) -> dict:
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "identity": [id(t) for t in (*model.parameters(), *model.buffers())],
        "train": [module.training for module in model.modules()],
        "momentum": [getattr(module, "momentum", None) for module in model.modules()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad is None for p in model.parameters()],
        "random": (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()),  # noqa: NPY002
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
    }


def assert_same_state(before: dict, after: dict) -> None:
    assert before.keys() == after.keys()
    for key, value in before.items():
        if key == "values":
            assert all(torch.equal(value[name], after[key][name]) for name in value)
        elif key == "random":
            assert torch.equal(value[0], after[key][0])
            assert value[1:] == after[key][1:]
        else:
            assert value == after[key], key


@pytest.mark.usefixtures("short_training")
@pytest.mark.parametrize("at", [None, *ALONE])
def test_the_model_and_the_random_states_are_as_they_were_also_after_an_error_in_a_stage(monkeypatch, keep_all, at):
    model, x, y = noisy_case()
    model.train()
    model[3].eval()
    model[1].bias.requires_grad_(False)
    before = state_of(model)
    if at is None:
        fixed = verifix.correct(model, (x, y), recipe=EVERY, progress=False).model
        assert [p.requires_grad for p in fixed.parameters()] == before["flags"]
        assert [module.training for module in fixed.modules()] == before["train"]
    else:
        real, calls = STAGES[at].fit, []

        def broken(self, strength):
            update = real(self, strength)
            calls.append(self.context)
            if len(calls) == 2:
                with self.context.corrected(update):
                    raise ZeroDivisionError("boom")
            return update

        monkeypatch.setattr(STAGES[at], "fit", broken)
        with pytest.raises(ZeroDivisionError, match="boom"):
            verifix.correct(model, (x, y), recipe=EVERY, progress=False)
        assert calls
    assert_same_state(before, state_of(model))


@pytest.mark.usefixtures("short_training", "recentre")
def test_buffers_and_biases_are_kept_applied_and_undone_to_the_bit(keep_all, tmp_path):
    model, x, y = noisy_case()
    correction = verifix.correct(model, (x, y), recipe="project,recentre,refit,finetune", progress=False)
    assert {"1.running_mean", "1.running_var", "1.weight", "0.bias", "5.weight"} <= set(correction.corrected)
    assert "1.num_batches_tracked" not in correction.corrected
    loaded = Correction.load(correction.save(tmp_path / "c.safetensors"))
    assert loaded.strengths == correction.strengths
    assert isinstance(loaded.strengths["finetune"], tuple)
    assert loaded.layer_strengths == correction.layer_strengths
    assert loaded.corrected.keys() == correction.corrected.keys()
    twin = copy.deepcopy(model)
    loaded.apply_(twin)
    fixed = correction.model.state_dict()
    assert all(torch.equal(value, fixed[name]) for name, value in twin.state_dict().items())
    for name, value in model.state_dict().items():
        assert torch.equal(value, fixed[name]) != (name in correction.corrected), name
    with torch.no_grad():
        assert torch.equal(twin(x), correction.model(x))
    with pytest.raises(CheckpointError, match="already"):
        loaded.apply_(twin)
    loaded.undo_(twin)
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())
    loaded.apply_(twin)
    twin[1].running_mean[3] += 1e-6
    with pytest.raises(CheckpointError, match=r"'1.running_mean' has other weights"):
        loaded.undo_(twin)


@pytest.mark.usefixtures("recentre")
def test_a_second_correction_is_refused_also_where_only_statistics_were_changed(keep_all):
    model, x, y = noisy_case()
    correction = verifix.correct(model, (x, y), recipe="recentre", progress=False)
    assert set(correction.corrected) == {"1.running_mean", "1.running_var"}
    with pytest.raises(CheckpointError, match=r"'1\.running_\w+' has been corrected already"):
        verifix.correct(correction.model, (x, y), recipe="recentre", progress=False)
    correction.undo_(correction.model)
    assert verifix.correct(correction.model, (x, y), recipe="recentre", progress=False).changed


@pytest.mark.usefixtures("short_training")
def test_the_summary_names_what_is_changed_without_being_a_layer(keep_all):
    class Placed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.places, self.net = nn.Parameter(torch.randn(4, 8) / 9), small_net(bn=False)
            self.net[2] = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))

        def forward(self, x):
            return self.net(x + self.places.sum(0))

    x, y = small_data()
    correction = verifix.correct(Placed().eval(), (x, y), recipe="project,finetune", progress=False)
    reports = {report.parameter: report for report in correction.layers}
    assert reports["places"].status == "corrected"
    assert "places: no layer, changed by" in correction.summary(verbose=True)
    assert "net.2.parametrizations.weight.original0: linear, changed by" in correction.summary(verbose=True)


def test_a_given_strength_alone_is_the_projection_alone_and_with_a_recipe_the_rest_is_chosen():
    model, x, y = noisy_case()
    assert set(verifix.correct(model, (x, y), alpha=30, progress=False).choices) == {"project"}
    assert set(verifix.correct(model, (x, y), progress=False, recipe="verifix").choices) == {"project"}
    both = verifix.correct(model, (x, y), alpha=30, recipe="project,refit", progress=False)
    assert both.alpha == 30
    assert [path.stages for path in both.paths] == [("project",), ("project", "refit")]
    assert [path.strengths["project"] for path in both.paths] == [30.0, 30.0]


def verified(data):
    return data.inputs[data.verified], data.labels[data.verified]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_on_the_digits_the_recipe_is_no_worse_than_the_projection_alone(seed):
    data = digits.load(seed)
    model = digits.trained(data, seed)
    unseen = data.inputs[data.unseen], data.labels[data.unseen]
    whole = verifix.correct(model, verified(data), seed=seed, progress=False)
    paper = verifix.correct(model, verified(data), recipe="verifix", seed=seed, progress=False)
    before, alone, after = (percent_right(m, *unseen) for m in (model, paper.model, whole.model))
    assert after >= alone - 0.5
    assert after >= before + 5
    points = {path.stages: path.point for path in whole.paths}
    assert [points[path.stages] for path in paper.paths] == [path.point for path in paper.paths]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["auto", "project,layerwise,refit"])
@pytest.mark.parametrize("seed", range(4))
def test_permuted_labels_leave_the_model_alone(seed, recipe):
    data = digits.load(seed)
    x, y = verified(data)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    model = digits.trained(data, seed)
    assert not verifix.correct(model, (x, y[order]), seed=seed, recipe=recipe, progress=False).changed
