from __future__ import annotations

import contextlib
import copy
import io

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import nn

import verifix
from tests import tiny
from tests.cases import small_data, small_net
from tests.stage_cases import NEAR_A_TIE, NEAREST, inputs_of, memorised, same, with_run
from verifix.capture.layer import rounded_once
from verifix.losses import best_sharpness
from verifix.recipe.stages.heads import find_head, fit_logistic
from verifix.recipe.stages.refit import Refit, written


def by_definition(features, labels, towards, pull, offset, free_bias):
    """Minimise the objective with its own gradient, written out in numpy, as far as float64 goes."""
    features, towards, offset = (np.asarray(t, dtype=np.float64) for t in (features, towards, offset))
    labels, (count, width), outputs = np.asarray(labels), features.shape, len(towards)
    scale = np.mean(np.sum(features**2, axis=1))
    target = labels[:, None] if outputs == 1 else np.eye(outputs)[labels]

    def unpacked(point):
        weight = point[: outputs * width].reshape(outputs, width)
        return weight, point[outputs * width :] if free_bias else offset

    def objective(point):
        weight, bias = unpacked(point)
        z = features @ weight.T + bias
        if outputs == 1:
            loss, probability = np.logaddexp(0, z) - target * z, 1 / (1 + np.exp(-z))
        else:
            total = np.logaddexp.reduce(z, axis=1, keepdims=True)
            loss, probability = total - (target * z).sum(axis=1, keepdims=True), np.exp(z - total)
        away = pull / 2 * (scale * np.sum((weight - towards) ** 2) + np.sum((bias - offset) ** 2))
        slope = (probability - target) / count
        by_weight = slope.T @ features + pull * scale * (weight - towards)
        by_bias = slope.sum(axis=0) + pull * (bias - offset)
        return loss.sum() / count + away, np.concatenate([by_weight.ravel(), *([by_bias] if free_bias else [])])

    start = np.concatenate([towards.ravel(), *([offset] if free_bias else [])])
    found = minimize(objective, start, jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 5000})
    return *unpacked(found.x), objective


@pytest.mark.parametrize("pull", [1e-3, 0.03, 1.0])
@pytest.mark.parametrize("free_bias", [True, False])
@pytest.mark.parametrize("outputs", [1, 3])
def test_the_fit_is_the_minimum_of_the_objective(outputs, free_bias, pull):
    features = 5 * torch.randn(90, 7, dtype=torch.float64)
    labels = torch.arange(90) % max(outputs, 2)
    features[:, 0] += 3 * labels
    towards, offset = torch.randn(outputs, 7).double() / 5, torch.randn(outputs).double()
    weight, bias = fit_logistic(features, labels, towards, pull, free_bias=free_bias, offset=offset)
    exact, own, objective = by_definition(features, labels, towards, pull, offset, free_bias)
    tolerance = 2e-4 / pull**0.5
    np.testing.assert_allclose(weight * 5, exact * 5, atol=tolerance)
    np.testing.assert_allclose(bias, own, atol=tolerance)
    point = np.concatenate([weight.numpy().ravel(), *([bias.numpy()] if free_bias else [])])
    best = objective(np.concatenate([exact.ravel(), *([own] if free_bias else [])]))
    assert objective(point)[0] <= best[0] + 1e-6
    assert np.abs(objective(point)[1][: weight.numel()] / 5).max() < 1e-3
    assert torch.equal(bias, offset) != free_bias


@pytest.mark.parametrize("outputs", [1, 3])
def test_without_a_bias_and_towards_nothing_it_is_sklearns_logistic_regression(outputs):
    features = torch.randn(90, 5, dtype=torch.float64)
    labels = torch.arange(90) % max(outputs, 2)
    features[:, 0] += labels
    zeros = torch.zeros(outputs, 5).double(), torch.zeros(outputs).double()
    weight, _ = fit_logistic(features, labels, zeros[0], 0.02, free_bias=False, offset=zeros[1])
    scale = float(features.square().sum(dim=1).mean())
    model = LogisticRegression(C=1 / (90 * 0.02 * scale), fit_intercept=False, tol=1e-10, max_iter=5000)
    model.fit(features.numpy(), labels.numpy())
    np.testing.assert_allclose(weight, model.coef_, atol=1e-3)


def expected_of(model, name, bias, features, labels, pull, more=0.0):
    """The refitted head by definition: pulled to the trained one at its best temperature."""
    weight = model.get_parameter(name).detach().double()
    own = torch.zeros(len(weight)).double() if bias is None else model.get_parameter(bias).detach().double()
    offset = own + more
    features = features.double()
    sharpness = best_sharpness(features @ weight.mT + offset, labels) or 1.0
    offset = offset * (sharpness if bias else 1.0)
    found = by_definition(features, labels, weight * sharpness, pull, offset, bias is not None)
    return torch.from_numpy(found[0]), torch.from_numpy(np.asarray(found[1])) - more


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_the_head_of_a_network_is_fitted_to_what_it_sees_and_nothing_else_changes(lend, classes, bias):
    x, y = small_data(90, classes=max(classes, 2))
    model = small_net(classes=classes).double()
    if not bias:
        model[5] = nn.Linear(16, classes, bias=False).double()
    model = memorised(model, x.double(), y)
    context = lend(model, x.double(), y, folds=3, without=0)
    update = Refit(context).fit(0.02)
    rows = inputs_of(model, x.double()[context.indices])["5.weight"]
    weight, own = expected_of(model, "5.weight", "5.bias" if bias else None, rows, context.labels, 0.02)
    assert update.keys() == {"5.weight", *(["5.bias"] if bias else [])}
    torch.testing.assert_close(update["5.weight"], weight, rtol=0, atol=3e-3)
    if bias:
        torch.testing.assert_close(update["5.bias"], own, rtol=0, atol=3e-3)
    assert float((update["5.weight"] - model[5].weight).abs().max()) > 0.05
    assert Refit(context).layers(0.02) == {"5.weight": {"pull": 0.02}}


def test_what_a_network_adds_to_its_logits_is_not_added_twice(lend):
    class Adjusted(nn.Module):
        def __init__(self, net) -> None:
            super().__init__()
            self.net = net
            self.register_buffer("prior", torch.tensor([3.0, -1.0, 0.5], dtype=torch.float64))

        def forward(self, x):
            return self.net(x) + self.prior

    x, y = small_data(90)
    model = Adjusted(memorised(small_net().double(), x.double(), y)).eval()
    context = lend(model, x.double(), y)
    rows = inputs_of(model.net, x.double())["5.weight"]
    weight, own = expected_of(model, "net.5.weight", "net.5.bias", rows, y, 0.05, more=model.prior)
    update = Refit(context).fit(0.05)
    torch.testing.assert_close(update["net.5.weight"], weight, rtol=0, atol=3e-3)
    torch.testing.assert_close(update["net.5.bias"], own, rtol=0, atol=3e-3)


def gpt2():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    sizes = {"n_embd": 8, "n_layer": 1, "n_head": 2, "n_positions": 8, "n_inner": 16, "vocab_size": 12}
    return GPT2ForSequenceClassification(GPT2Config(**sizes, num_labels=3, pad_token_id=11))


def tokens() -> tuple[dict, torch.Tensor]:
    y = torch.arange(90) % 3
    ids = torch.randint(0, 8, (90, 6), generator=torch.Generator().manual_seed(0))
    ids[:, 2] = 8 + y
    return {"input_ids": ids, "attention_mask": torch.ones(90, 6, dtype=torch.long)}, y


def test_a_head_applied_to_every_token_is_fitted_to_the_one_that_gives_the_logits(lend, vision):
    inputs, y = tokens()
    inputs["input_ids"][::2, 4:] = 11  # the logits come from the last token that is no padding
    inputs["attention_mask"][::2, 4:] = 0
    model = memorised(gpt2(), inputs, y, steps=10)
    context = lend(model, inputs, y, batch_size=40)
    last = inputs["attention_mask"].sum(dim=1) - 1
    rows = inputs_of(model, inputs)["score.weight"][torch.arange(90), last]
    torch.testing.assert_close(find_head(context).features, rows.double(), rtol=0, atol=1e-5)
    weight, _ = expected_of(model, "score.weight", None, rows, y, 0.02)
    update = Refit(context).fit(0.02)
    assert set(update) == {"score.weight"}
    torch.testing.assert_close(update["score.weight"].double(), weight, rtol=0, atol=5e-3)


def library_model(folder) -> nn.Module:
    from transformers import AutoModelForSequenceClassification

    with contextlib.redirect_stderr(io.StringIO()):
        return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def test_the_head_of_a_bert_is_fitted_to_its_pooled_output(lend, tmp_path, vision):
    tiny.text_model(tmp_path, train=True)
    model = library_model(tmp_path)
    texts, moods = tiny.sentences(90, 3)
    inputs = dict(tiny.tokenizer()(texts, padding=True, return_tensors="pt"))
    y = torch.tensor([int(mood == "pos") for mood in moods])
    context = lend(model, inputs, y)
    rows = inputs_of(model, inputs)["classifier.weight"]
    weight, own = expected_of(model, "classifier.weight", "classifier.bias", rows, y, 0.05)
    update = Refit(context).fit(0.05)
    torch.testing.assert_close(update["classifier.weight"].double(), weight, rtol=0, atol=5e-3)
    torch.testing.assert_close(update["classifier.bias"].double(), own, rtol=0, atol=5e-3)


def test_an_endless_pull_changes_the_temperature_alone(lend):
    x, y = small_data(90)
    model = memorised(small_net(), x, y)
    context = lend(model, x, y)
    before, after = context.predict(range(90), {}), context.predict(range(90), Refit(context).fit(1e9))
    torch.testing.assert_close(after, before * best_sharpness(before, y), rtol=1e-4, atol=1e-4)
    assert torch.equal(before.argmax(dim=1), after.argmax(dim=1))


def test_features_come_from_the_weights_that_earlier_stages_left(lend):
    x, y = small_data(90)
    model = memorised(small_net(), x, y)
    changed = {name: model.get_parameter(name).detach() * 0.5 for name in ("0.weight", "5.weight", "5.bias")}
    found = Refit(lend(model, x, y).after("other", 1.0, changed)).fit(0.02)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in changed.items():
            twin.get_parameter(name).copy_(value)
    assert same(found, Refit(lend(twin, x, y)).fit(0.02))
    assert not same(found, Refit(lend(model, x, y)).fit(0.02))


def test_a_head_stored_in_half_precision_is_rounded_once(lend):
    x, y = small_data(90)
    model = memorised(small_net().double(), x.double(), y)
    context = lend(model, x.double(), y)
    exact = Refit(context).fit(0.02)
    half = Refit(with_run(context, stored_as=dict.fromkeys(exact, torch.bfloat16))).fit(0.02)
    for name, value in exact.items():
        assert half[name].dtype == torch.bfloat16
        assert torch.equal(half[name], rounded_once(value, torch.bfloat16))
    context = with_run(context, stored_as=dict.fromkeys(exact, torch.bfloat16))
    near = torch.full((3, 16), NEAR_A_TIE, dtype=torch.float64)
    for value in written(context, find_head(context), near, near[:, 0]).values():
        assert bool((value == NEAREST).all())


class Pooled(nn.Module):
    """The mean of a convolution's outputs: no linear layer gives the logits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 3, 3)

    def forward(self, x):
        return self.conv(x[:, None]).relu().mean(2)


def test_without_a_head_that_may_be_corrected_it_is_not_tried_and_says_so():
    x, y = small_data()
    for model, settings in ((Pooled(), {}), (small_net(), {"exclude": ["5.*"]}), (small_net(), {"include": ["0.*"]})):
        correction = verifix.correct(model.eval(), (x, y), recipe="refit", progress=False, **settings)
        reason = "not tried: no linear layer that may be corrected computes the logits"
        assert correction.choices["refit"].reason == reason
        assert reason in correction.summary()
        assert not correction.changed
