from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.methods import METHODS, finetune
from benchmarks.methods.base import NO_CHANGE, Case, Tool, answered, predictor
from benchmarks.methods.features import Features, penultimate
from benchmarks.methods.finetune import MOST, RATES, FineTuning, LongFineTuning
from benchmarks.methods.head_refit import HeadRefit
from benchmarks.methods.knn import NEIGHBOURS, WEIGHTS, NearestNeighbours
from benchmarks.methods.nothing import Nothing
from benchmarks.methods.recalibrate import Recalibration
from benchmarks.methods.retrain import Retrain
from benchmarks.methods.rog import (
    COMPONENTS,
    RobustGenerative,
    components,
    concentrated,
    discriminant,
    shrunk_covariance,
)
from torch import nn

from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix.errors import DataError
from verifix.model.samples import read_samples

LENGTHS = (2, 5, 20)

OWN = {
    "nothing": Nothing,
    "finetuning": FineTuning,
    "finetuning_long": LongFineTuning,
    "head_refit": HeadRefit,
    "recalibration": Recalibration,
    "knn": NearestNeighbours,
    "rog": RobustGenerative,
    "retrain": Retrain,
}


def case_of(model: nn.Module, count: int = 60, train=None) -> Case:
    """Verified samples, and 90 others that the model was trained on, every fifth label wrong."""
    x, truth = (part[:90] for part in small_data(150))
    x = x.to(next(model.parameters()).dtype)
    given = torch.where(torch.arange(90) % 5 == 0, (truth + 1) % 3, truth)
    verified, y = (part[90 : 90 + count] for part in small_data(150))
    samples = read_samples((verified.to(x.dtype), y))
    return Case(model, samples, read_samples((x, given)), truth, tuple(range(count)), train or (lambda _: model), 3)


def trained_case(bn: bool = True) -> Case:
    x, y = small_data(150)
    return case_of(memorised(small_net(bn).double(), x[:90].double(), y[:90]))


def context_for(lend, case: Case, **settings):
    inputs = torch.stack([case.verified.source.dataset[i][0] for i in range(len(case.verified))])
    return lend(case.model, inputs, case.verified.labels, **settings), inputs


class Headless(nn.Module):
    """Logits that are no products of a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        return self.linear(x).tanh()


# ------------------------------------------------------------------------------------------------------- the table


def test_the_table_holds_every_method_and_the_recipes_of_the_tool():
    known = {name: entry.make for name, entry in METHODS.items()}
    assert {name: known[name] for name in (*OWN, "verifix", "auto")} == {
        **OWN,
        "verifix": Tool("verifix"),
        "auto": Tool("auto"),
    }
    for name, make in known.items():
        assert isinstance(make, Tool) or make.name == name


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_settings_are_eight_or_more_different_ones_unless_there_is_nothing_to_set(lend, name):
    context, _ = context_for(lend, case := trained_case())
    strengths = METHODS[name].make(case, context).candidates().strengths
    assert len(set(strengths)) == len(strengths)
    assert len(strengths) >= 8 or (name in ("nothing", "retrain") and strengths == ((),))


@pytest.mark.slow
@pytest.mark.parametrize("name", OWN)
def test_every_method_answers_after_the_network_was_given_back(name):
    case = trained_case()
    before = copy.deepcopy(case.model.state_dict())
    answer = answered(METHODS[name].make, case)
    some = [5, 3, 4]
    logits = answer.predict(case.training, some)
    assert not answer.obstacle
    assert logits.dtype == torch.float64
    assert logits.shape == (3, 3)
    torch.testing.assert_close(logits, answer.predict(case.training, range(90))[some], rtol=1e-9, atol=1e-9)
    assert torch.isfinite(logits).all()
    assert all(torch.equal(value, before[key]) for key, value in case.model.state_dict().items())
    if name not in ("nothing", "retrain"):
        assert answer.chosen == min(answer.tried, key=lambda setting: setting.loss).strength
        assert answer.tried[0].strength == NO_CHANGE


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OWN.keys() - {"nothing", "retrain"}))
def test_neighbours_are_other_settings_that_can_be_fitted(lend, name):
    context, _ = context_for(lend, case := trained_case())
    method = METHODS[name].make(case, context)
    for strength in method.candidates().strengths:
        for near in method.neighbours(strength):
            assert len(near) == len(strength)
            assert sum(a != b for a, b in zip(near, strength, strict=True)) == 1
    best = method.candidates().strengths[0]
    (near, *_) = method.neighbours(best)
    assert predictor(context.run.model, method.fit(near))(case.verified, [0]).shape == (1, 3)


def test_a_training_can_become_longer_as_long_as_it_sees_so_many_samples(lend):
    context, _ = context_for(lend, case := trained_case())  # 60 samples
    method = FineTuning(case, context)
    lengths = {epochs for _, epochs in method.candidates().strengths}
    assert lengths == {7.0, 28.0}
    assert [near[1] for near in method.neighbours((1e-3, 28.0)) if near[0] == 1e-3] == [7.0, 112.0]
    assert [near[1] for near in method.neighbours((1e-3, 112.0)) if near[0] == 1e-3] == [28.0]
    assert 112 * 60 <= MOST < 4 * 112 * 60
    assert (1e-3, 448.0) in LongFineTuning(case, context).neighbours((1e-3, 112.0))
    assert [near[0] for near in method.neighbours((1e-3, 7.0)) if near[1] == 7.0] == [3.2e-4, 3.2e-3]


# ------------------------------------------------------------------------------------------- no change, and retrained


def test_no_change_gives_the_logits_of_the_network():
    case = trained_case()
    inputs = torch.stack([case.training.source.dataset[i][0] for i in range(90)])
    with torch.no_grad():
        expected = case.model(inputs)
    torch.testing.assert_close(answered(Nothing, case).predict(case.training, range(90)), expected)


def test_retraining_gives_the_network_that_was_trained_on_the_true_labels():
    other, asked = small_net().double(), []
    case = case_of(small_net().double(), train=lambda labels: asked.append(labels) or other)
    answer = answered(Retrain, case)
    assert [torch.equal(labels, case.truth) for labels in asked] == [True]
    torch.testing.assert_close(
        answer.predict(case.training, range(90)), predictor(other, {})(case.training, range(90)), rtol=0, atol=0
    )


# ------------------------------------------------------------------------------------------------------ fine-tuning


def adam_by_hand(weight, bias, x, y, rate: float, steps: int):
    """Kingma and Ba, algorithm 1, on a softmax regression, whose gradient is (p − y) xᵀ / n."""
    values = [weight.clone(), bias.clone()]
    first, second = ([torch.zeros_like(v) for v in values] for _ in range(2))
    for t in range(1, steps + 1):
        wrong = (torch.softmax(x @ values[0].T + values[1], 1) - torch.eye(len(bias)).double()[y]) / len(x)
        for i, slope in enumerate((wrong.T @ x, wrong.sum(0))):
            first[i] = 0.9 * first[i] + 0.1 * slope
            second[i] = 0.999 * second[i] + 0.001 * slope**2
            values[i] = values[i] - rate * (first[i] / (1 - 0.9**t)) / ((second[i] / (1 - 0.999**t)).sqrt() + 1e-8)
    return values


@pytest.mark.parametrize("epochs", LENGTHS)
def test_fine_tuning_of_a_linear_model_in_full_batches_is_adam_by_hand(lend, epochs):
    case = case_of(nn.Linear(8, 3).double(), 30)
    context, x = context_for(lend, case)
    weight, bias = (p.detach().clone() for p in case.model.parameters())
    for rate in (RATES[0], RATES[-1]):
        update = FineTuning(case, context).fit((rate, float(epochs)))
        expected = adam_by_hand(weight, bias, x, case.verified.labels, rate, epochs)
        assert update.keys() == {"weight", "bias"}
        for name, value in zip(("weight", "bias"), expected, strict=True):
            torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)
    assert torch.equal(case.model.weight, weight)
    assert case.model.weight.grad is None


def test_all_epochs_of_a_rate_come_out_of_one_training_on_other_orders(lend, monkeypatch):
    case = trained_case()
    context, _ = context_for(lend, case, folds=5, without=1)
    calls: list[list[int]] = []
    size = 20  # neither its own nor that of the library's fine-tuning
    monkeypatch.setattr(finetune, "BATCH", size)

    def noted(samples, indices, count):
        for batch in batches(samples, indices, count):
            calls.append(batch.indices)
            yield batch

    batches = type(context.run.samples).batches
    monkeypatch.setattr(type(context.run.samples), "batches", noted)
    method = FineTuning(case, context)
    kept = [method.fit((RATES[0], float(epochs))) for epochs in LENGTHS]
    steps = -(-len(context.indices) // size)
    assert len(calls) == max(LENGTHS) * steps
    epochs = [list(itertools.chain(*calls[i : i + steps])) for i in range(0, len(calls), steps)]
    assert all(sorted(order) == context.indices for order in epochs)
    assert epochs[0] != epochs[1]
    moved = [float((update["0.weight"] - context.parameter("0.weight")).norm()) for update in kept]
    assert moved == sorted(moved)
    assert kept[0].keys() == dict(case.model.named_parameters()).keys()  # BatchNorm keeps its statistics


def test_fine_tuning_that_runs_off_is_an_error_and_no_setting(lend):
    context, _ = context_for(lend, case := trained_case())
    with pytest.raises(DataError, match=r"at rate 1e\+200 made '.*' NaN or Inf"):
        FineTuning(case, context).fit((1e200, 4.0))


# ------------------------------------------------------------------------------------------------ last-layer retraining


@pytest.mark.parametrize("pull", [1e-3, 0.1])
def test_the_head_is_the_logistic_regression_of_scikit_learn(lend, pull):
    from sklearn.linear_model import LogisticRegression

    case = trained_case()
    context, x = context_for(lend, case, folds=5, without=2)
    update = HeadRefit(case, context).fit((pull,))
    rows = case.model[:-1](x[context.indices])
    size = float(rows.square().sum(1).mean()) ** 0.5
    # A bias that is penalised like the weights of features of norm 1 is the weight of a feature that is 1.
    augmented = torch.cat([rows / size, torch.ones(len(rows), 1)], 1).numpy()
    fitted = LogisticRegression(C=1 / (len(rows) * pull), fit_intercept=False, tol=1e-10, max_iter=10000)
    expected = torch.from_numpy(fitted.fit(augmented, context.labels.numpy()).coef_)
    assert update.keys() == {"5.weight", "5.bias"}
    found = torch.cat([update["5.weight"] * size, update["5.bias"][:, None]], 1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_a_head_without_a_bias_is_fitted_without_one(lend):
    x, y = small_data(150)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3, bias=False)).double()
    case = case_of(memorised(model, x[:90].double(), y[:90]))
    context, x = context_for(lend, case)
    update = HeadRefit(case, context).fit((1e-2,))
    rows = case.model[:-1](x[context.indices])
    weight = update["2.weight"].clone().requires_grad_()
    assert update.keys() == {"2.weight"}
    with torch.enable_grad():
        loss = nn.functional.cross_entropy(rows @ weight.T, context.labels)
        loss = loss + 1e-2 / 2 * rows.square().sum(1).mean() * weight.square().sum()
        (slope,) = torch.autograd.grad(loss, weight)
    assert float(slope.norm()) < 1e-3 * float(update["2.weight"].norm())


@pytest.mark.parametrize("name", ["head_refit", "knn", "rog"])
def test_methods_on_the_head_say_if_there_is_none(lend, name):
    case = case_of(Headless())
    context, _ = context_for(lend, case)
    assert METHODS[name].make(case, context).obstacle() == "no linear layer gives the logits"


# ------------------------------------------------------------------------------------------- BatchNorm recalibration


def test_recalibration_mixes_the_statistics_of_what_reaches_each_norm(lend):
    model = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 5), nn.BatchNorm1d(5))
    case = case_of(model.double().eval())
    context, x = context_for(lend, case)
    found = {m: Recalibration(case, context).fit((m,)) for m in (1.0, 0.25)}
    with torch.no_grad():
        first = model[0](x)
        normal = (first - first.mean(0)) / (first.var(0, correction=0) + model[1].eps).sqrt()
        second = model[3](normal.relu())
    for key, seen in (("1", first), ("4", second)):
        for name, new, old in (("mean", seen.mean(0), 0.0), ("var", seen.var(0), 1.0)):
            torch.testing.assert_close(found[1.0][f"{key}.running_{name}"], new)
            torch.testing.assert_close(found[0.25][f"{key}.running_{name}"], 0.25 * new + 0.75 * old)


def test_recalibration_needs_a_norm_with_statistics(lend):
    case = trained_case(bn=False)
    context, _ = context_for(lend, case)
    assert "BatchNorm" in Recalibration(case, context).obstacle()


# ------------------------------------------------------------------------------------------------ nearest neighbours


def votes_by_hand(rows, labels, asked, count: int, weighting: str) -> torch.Tensor:
    """Add up the votes of the nearest samples, one by one."""
    votes = torch.zeros(len(asked), 3).double()
    for i, row in enumerate(asked):
        apart = torch.stack([1 - torch.dot(row, other) / (row.norm() * other.norm()) for other in rows])
        for j in apart.argsort()[:count]:
            votes[i, labels[j]] += 1.0 if weighting == "uniform" else 1 / apart[j]
    return votes / votes.sum(1, keepdim=True)


@pytest.mark.parametrize("weighting", range(2))
@pytest.mark.parametrize("count", [3, 10])
def test_neighbours_vote_as_added_up_by_hand_with_one_vote_for_all_classes(lend, count, weighting):
    case = case_of(nn.Linear(8, 3).double())  # its head sees the inputs, which say nothing about these labels
    case = replace(case, verified=read_samples((torch.randn(60, 8).double(), case.verified.labels)))
    context, x = context_for(lend, case, folds=5, without=0)
    asked = [7, 2, *range(20, 60)]
    inputs = torch.stack([case.training.source.dataset[i][0] for i in asked])
    logits = NearestNeighbours(case, context).fit((float(count), float(weighting)))(case.training, asked)
    shares = votes_by_hand(x[context.indices], context.labels, inputs, count, WEIGHTS[weighting])
    assert (shares.amax(1) < 1).any()
    torch.testing.assert_close(logits.exp(), (count * shares + 1 / 3) / (count + 1), rtol=1e-6, atol=1e-6)


def test_more_neighbours_than_samples_are_all_samples_and_missing_classes_get_no_vote(lend):
    case = trained_case()
    two = (case.verified.labels != 1).nonzero().flatten()[:20]
    case = Case(case.model, case.verified.subset(two.tolist()), case.training, case.truth, (), case.train, 3)
    context, _ = context_for(lend, case)
    assert max(NEIGHBOURS) > len(two)
    logits = NearestNeighbours(case, context).fit((float(max(NEIGHBOURS)), 0.0))(case.training, [0, 1])
    counts = torch.bincount(case.verified.labels, minlength=3)
    torch.testing.assert_close(logits.exp(), ((counts.double() + 1 / 3) / 21).expand(2, 3))


def test_features_are_those_of_the_samples_asked_for_in_their_order(lend):
    case = trained_case()
    context, x = context_for(lend, case)
    expected = case.model[:-1](x)
    for some in ([7, 2, 40], [2], [50, 7]):
        torch.testing.assert_close(penultimate(context, case.verified, some), expected[some])
    kept = Features(context)
    trained = case.model[:-1](torch.stack([case.training.source.dataset[i][0] for i in (7, 2)]))
    torch.testing.assert_close(kept(case.verified, [7, 2]), expected[[7, 2]])
    torch.testing.assert_close(kept(case.training, [7, 2]), trained)
    assert kept(case.training, [7, 2]) is kept(case.training, [7, 2])


# ------------------------------------------------------------------------------------------------------------- RoG


def clouds(outliers: int = 0, n: int = 100, d: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three Gaussians of one covariance, with so many gross outliers in each; and the true means."""
    generator = torch.Generator().manual_seed(3)
    means = 2 * torch.randn(3, d, generator=generator, dtype=torch.float64)
    shape = torch.randn(d, d, generator=generator, dtype=torch.float64) / 2
    labels = torch.arange(3 * n) % 3
    x = means[labels] + torch.randn(3 * n, d, generator=generator, dtype=torch.float64) @ shape
    for k in range(3):
        x[(labels == k).nonzero().flatten()[:outliers]] += 50 * torch.eye(d).double()[k]
    return x, labels, means


@pytest.mark.parametrize("shrinkage", [0.0, 0.3])
def test_with_all_samples_kept_it_is_the_lda_of_scikit_learn(shrinkage):
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    x, y, _ = clouds()
    x, y = x[:-20], y[:-20]  # priors that differ
    weight, bias = discriminant(x, y, 3, 1.0, shrinkage)
    oracle = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage or None).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(weight, oracle.coef_, rtol=1e-8)
    np.testing.assert_allclose(bias, oracle.intercept_, rtol=1e-8)


def test_the_samples_kept_are_those_of_minimum_covariance_determinant_in_scikit_learn():
    from sklearn.covariance import MinCovDet

    for outliers in (0, 20):
        x, y, _ = clouds(outliers)
        for k in range(3):
            rows = x[y == k]
            oracle = MinCovDet(support_fraction=0.75, random_state=0).fit(rows.numpy())
            found = concentrated(rows, 0.75, 0.0)
            sizes = [float(np.linalg.slogdet(np.cov(r.T))[1]) for r in (found, rows[oracle.raw_support_])]
            assert len(found) == int(oracle.raw_support_.sum()) == 75
            assert sizes[0] <= sizes[1] + 0.05  # of log det: both are local minima
            assert sizes[0] <= float(np.linalg.slogdet(np.cov(rows.T))[1]) - 1


def test_concentration_steps_end_at_samples_that_are_the_nearest_by_their_own_covariance():
    x, y, _ = clouds(20)
    for k in range(3):
        rows = x[y == k]
        found = concentrated(rows, 0.6, 0.0).numpy()
        spread = np.cov(found.T)
        distances = [(row - found.mean(0)) @ np.linalg.inv(spread) @ (row - found.mean(0)) for row in rows.numpy()]
        nearest = rows.numpy()[np.argsort(distances)[:60]]
        assert {tuple(row) for row in nearest} == {tuple(row) for row in found}


def test_outliers_that_lie_close_together_do_not_hide_in_the_start():
    """40% in one place, in 20 dimensions: steps from the last samples, or from random ones, end among them."""
    rows = torch.randn(100, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rows[60:] = 20 + rows[60:] / 100
    assert float(concentrated(rows, 0.5, 0.01).max()) < 10


def test_gross_outliers_move_plain_lda_and_not_the_robust_one():
    """Lee et al., theorem 1: the mean goes to (1 − δ) μ + δ μ_out, and that of the samples kept to μ."""
    x, y, means = clouds(200, n=1000)
    plain = torch.stack([x[y == k].mean(0) for k in range(3)])
    robust = torch.stack([concentrated(x[y == k], 0.5, 1e-3).mean(0) for k in range(3)])
    torch.testing.assert_close(plain, means + 10 * torch.eye(4).double()[:3], rtol=0, atol=0.2)
    torch.testing.assert_close(robust, means, rtol=0, atol=0.2)
    clean, labels, _ = clouds()
    right = {}
    for support in (1.0, 0.75, 0.5):
        weight, bias = discriminant(x, y, 3, support, 1e-3)
        right[support] = float(((clean @ weight.T + bias).argmax(1) == labels).double().mean())
    best = discriminant(clean, labels, 3, 1.0, 0.0)
    limit = float(((clean @ best[0].T + best[1]).argmax(1) == labels).double().mean())
    assert right[0.75] >= limit - 0.02
    assert right[0.5] >= limit - 0.02
    assert right[1.0] < limit - 0.05


def test_it_takes_fewer_samples_than_features_and_features_that_are_equal():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(30, 60, generator=generator, dtype=torch.float64)
    x[:, 3] = 1.0
    x[:10] = 1.0
    same = concentrated(x[:10], 0.5, 0.1)
    assert torch.linalg.slogdet(shrunk_covariance(same, 0.1)).logabsdet > -torch.inf
    weight, bias = discriminant(x, torch.arange(30) // 10, 3, 0.5, 0.1)
    assert torch.isfinite(weight).all()
    assert ((x @ weight.T + bias)[:10].argmax(1) == 0).all()


def test_components_keep_what_varies_most():
    generator = torch.Generator().manual_seed(0)
    rank, d = 20, COMPONENTS + 40
    x = torch.randn(300, rank, generator=generator) @ torch.randn(rank, d, generator=generator)
    reduced, centre, directions = components(x.double())
    assert reduced.shape == (300, rank)
    torch.testing.assert_close(reduced @ directions.T + centre, x.double(), rtol=0, atol=1e-4)
    wide = torch.randn(300, d, generator=generator).double()
    reduced, _, _ = components(wide)
    assert reduced.shape == (300, COMPONENTS)
    spreads = torch.linalg.svdvals(wide - wide.mean(0))[:COMPONENTS]
    torch.testing.assert_close(reduced.norm(dim=0), spreads)


@pytest.mark.parametrize("bias", [True, False])
def test_the_head_gives_the_discriminant_of_training_features_whether_it_has_a_bias_or_not(lend, bias):
    x, y = small_data(150)
    model = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3, bias=bias)).double()
    case = case_of(memorised(model, x[:90].double(), y[:90]))
    context, _ = context_for(lend, case, folds=5, without=0)
    fitted = RobustGenerative(case, context).fit((0.6, 0.01))
    assert callable(fitted) is not bias
    rows = model[:-1](x[:90].double())
    reduced, centre, directions = components(rows)
    weight, offset = discriminant(reduced, case.training.labels, 3, 0.6, 0.01)
    assert not torch.equal(case.training.labels, case.truth)
    found = predictor(case.model, fitted)(case.training, range(90))
    torch.testing.assert_close(found, (rows - centre) @ directions @ weight.T + offset)


def test_it_cannot_run_without_two_samples_of_every_class(lend):
    case = trained_case()
    case = Case(case.model, case.verified, case.training, case.truth, (), case.train, classes=4)
    context, _ = context_for(lend, case)
    assert "fewer than 2" in RobustGenerative(case, context).obstacle()
