from __future__ import annotations

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import DataError, UsageError
from verifix.cli.demo import digits
from verifix.model.folds import split_folds
from verifix.model.samples import read_samples
from verifix.proof import OUTER_FOLDS, estimated_seconds, halves, measured
from verifix.recipe.paths import Path


@pytest.fixture(scope="module")
def case():
    """A network with BatchNorm that memorised wrong labels, and verified samples."""
    torch.manual_seed(0)
    x, y = small_data(90)
    return memorised(small_net(), x, torch.where(torch.arange(90) % 3 == 0, (y + 1) % 3, y)), x, y


@pytest.mark.slow
@pytest.mark.usefixtures("short_training")
@pytest.mark.parametrize(
    "settings",
    [{"alpha": 30.0}, {"recipe": "verifix"}, {"recipe": "project,refit,finetune"}, {"folds": 3}, {"budget": 1e-9}],
    ids=str,
)
def test_each_fold_is_predicted_by_a_correction_from_all_other_folds_and_nothing_else(case, settings, monkeypatch):
    model, x, y = case
    proof = verifix.prove(model, (x, y), seed=3, progress=False, **settings, verified_from="unseen")
    folds = split_folds(read_samples((x, y)), OUTER_FOLDS, 3)
    assert sorted(int(i) for fold in folds for i in fold) == list(range(90))
    for fold, shown in zip(folds, proof.folds, strict=True):
        rest = [i for i in range(90) if i not in set(fold.tolist())]
        inner = [[rest.index(i) for i in other] for other in folds if other is not fold]
        monkeypatch.setattr("verifix.preflight.split_folds", lambda *_, inner=inner: inner)
        fixed = verifix.correct(model, (x[rest], y[rest]), seed=3, progress=False, **settings | {"folds": 4})
        with torch.no_grad():
            before, after = model(x[fold]).double(), fixed.model(x[fold]).double()
        torch.testing.assert_close(proof.after[fold], after, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(proof.before[fold], before, rtol=1e-5, atol=1e-6)
        assert shown.strengths == fixed.strengths
        assert shown.samples == len(fold)
        assert shown.before == pytest.approx(100 * float((before.argmax(1) == y[fold]).double().mean()))
        assert shown.after == pytest.approx(100 * float((after.argmax(1) == y[fold]).double().mean()))
    assert proof.indices == tuple(range(90))
    assert torch.equal(proof.labels, y)


def test_the_labels_and_inputs_of_a_fold_do_not_touch_its_own_predictions(case):
    model, x, y = case
    proof = verifix.prove(model, (x, y), alpha=30.0, progress=False, check_inputs=False, verified_from="unseen")
    fold = split_folds(read_samples((x, y)), OUTER_FOLDS, 0)[2].tolist()
    other = x.clone()
    other[fold[0]] += 3.0
    changed = verifix.prove(model, (other, y), alpha=30.0, progress=False, check_inputs=False, verified_from="unseen")
    assert torch.equal(proof.after[fold[1:]], changed.after[fold[1:]])
    outside = [i for i in range(90) if i not in set(fold)]
    assert not torch.equal(proof.after[outside], changed.after[outside])


def test_equal_samples_never_stand_on_both_sides(case):
    _, x, y = case
    twice, labels = torch.cat([x[:40], x[:40]]), torch.cat([y[:40], y[:40]])
    samples = read_samples((twice, labels))
    correcting, proving = halves(samples, 0)
    assert sorted(correcting + proving) == list(range(80))
    assert {i % 40 for i in correcting}.isdisjoint({i % 40 for i in proving})


def test_the_model_is_left_as_it_was(case):
    model, x, y = case
    before = {name: value.clone() for name, value in model.state_dict().items()}
    verifix.prove(model, (x, y), alpha=30.0, progress=False, verified_from="unseen")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_loader_that_shuffles_gives_the_same_proof_in_the_order_of_its_data(case):
    model, x, y = case
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    first, second = (
        verifix.prove(model, data, alpha=30.0, batch_size=16, progress=False, verified_from="unseen")
        for data in (loader, (x, y))
    )
    assert torch.equal(first.after, second.after)
    assert first.comparison.as_dict() == second.comparison.as_dict()


def test_a_split_proof_judges_the_very_correction_on_what_it_has_not_seen(case):
    model, x, y = case
    samples = read_samples((x, y))
    correcting, proving = halves(samples, 0)
    fixed = verifix.correct(model, samples.subset(correcting), alpha=30.0, progress=False)
    again = verifix.correct(model, (x[correcting], y[correcting]), alpha=30.0, progress=False)
    for name, value in fixed.corrected.items():
        torch.testing.assert_close(value, again.corrected[name])
    proof = measured("split", model, fixed, samples, proving)
    with torch.no_grad():
        torch.testing.assert_close(proof.after, fixed.model(x[proving]).double(), rtol=1e-5, atol=1e-6)
    assert proof.indices == tuple(proving)
    assert torch.equal(proof.labels, y[proving])


@pytest.mark.parametrize("origin", ["training", "trusted"])
def test_samples_that_prove_nothing_are_refused(case, origin):
    model, x, y = case
    with pytest.raises(UsageError, match="prove nothing"):
        verifix.prove(model, (x, y), verified_from=origin, alpha=30.0, progress=False)


def test_too_few_samples_are_refused_before_anything_runs(case):
    model, x, y = case
    with pytest.raises(DataError, match="62 verified samples, but a nested proof needs at least 63"):
        verifix.prove(model, (x[:62], y[:62]), progress=False, verified_from="unseen")


def test_settings_are_checked_and_unknown_ones_refused(case):
    model, x, y = case
    with pytest.raises(UsageError, match="alpha is -1"):
        verifix.prove(model, (x, y), alpha=-1, verified_from="unseen")
    with pytest.raises(TypeError, match="alfa"):
        verifix.prove(model, (x, y), alfa=3.0, progress=False, verified_from="unseen")


def test_the_estimate_is_one_pass_and_fifteen_fits_to_choose_from_three_fifths_of_the_samples():
    tried = (Path(), Path({"project": 1.0}, seconds=30.0), Path({"project": 1.0, "refit": None}, None, "", 20.0))
    correction = verifix.Correction({}, {}, {}, (), {}, paths=tried)
    assert estimated_seconds(correction, 60.0, 5) == pytest.approx(10 + 50 * 15 / 5 * (3 / 5) / (4 / 5))
    assert estimated_seconds(correction, 60.0, 2) == pytest.approx(10 + 50 * 15 / 2 * (3 / 5) / (1 / 2))


def test_a_true_gain_on_digits_is_proved_and_agrees_with_unseen_digits():
    data = digits.load(0)
    model = digits.trained(data, 0)
    verified = data.inputs[data.verified], data.labels[data.verified]
    proof = verifix.prove(model, verified, recipe="verifix", progress=False, verified_from="unseen")
    assert proof.verdict == "improved"
    fixed = verifix.correct(model, verified, recipe="verifix", progress=False)
    unseen = read_samples((data.inputs[data.unseen], data.labels[data.unseen]))
    truth = measured("test", model, fixed, unseen, range(len(unseen)))
    gain = proof.comparison.gain
    assert gain.low <= truth.comparison.gain.estimate <= gain.high


def test_meaningless_labels_are_not_proved():
    data = digits.load(0)
    model = digits.trained(data, 0)
    shuffled = data.labels[data.verified][torch.randperm(200)]
    samples = data.inputs[data.verified], shuffled
    with pytest.raises(DataError, match=r"right on \d+ of the 200 verified samples .* near chance"):
        verifix.prove(model, samples, alpha=1000.0, progress=False, verified_from="unseen")
    proof = verifix.prove(model, samples, alpha=1000.0, check_inputs=False, progress=False, verified_from="unseen")
    assert proof.verdict == "not proven"
