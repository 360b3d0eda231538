"""Samples that are trusted when nobody verified any, against slow and obvious rankings."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import verifix
from verifix.cli.demo import digits
from verifix.cli.demo.training import mlp, train
from verifix.correction import UNVERIFIED_SCORES, Correction
from verifix.model.samples import read_samples
from verifix.options import TRUST_METHODS
from verifix.selection.rankings import DRAWS, STEP
from verifix.selection.trusted import Trusted, choose

CLASSES, SAMPLES = 3, 90


class Net(nn.Module):
    """Everything that a wrong mode would show in: dropout, BatchNorm and a first layer that overwrites its input."""

    def __init__(self, outputs: int = CLASSES) -> None:
        super().__init__()
        self.first = nn.SiLU(inplace=True)
        self.norm = nn.BatchNorm1d(6)
        self.hidden = nn.Linear(6, 16)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, outputs)

    def forward(self, x):
        return self.head(self.drop(torch.tanh(self.hidden(self.norm(self.first(x))))))


class Two(nn.Module):
    """Two floating inputs and one of whole numbers, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.ids = nn.Linear(4, 8), nn.Linear(6, 8), nn.Embedding(5, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, left, right, ids):
        return self.head(torch.tanh(self.left(left) + self.right(right.flatten(1)) + self.ids(ids)))


def net(outputs: int = CLASSES, dtype: torch.dtype = torch.float64) -> Net:
    torch.manual_seed(3)
    model = Net(outputs).to(dtype)
    model.train()
    with torch.no_grad():
        model(3 * torch.randn(200, 6, dtype=dtype))  # running statistics that are not those of a fresh layer
        model.head.weight.mul_(4)
    return model.train()


def data(n: int = SAMPLES, classes: int = CLASSES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(n, 6, dtype=torch.float64, generator=generator), torch.arange(n) * 7 % classes


def evaluated(model: nn.Module) -> nn.Module:
    twin = type(model)() if isinstance(model, Two) else Net(model.head.out_features)
    twin.double().load_state_dict(model.state_dict())
    return twin.eval()


def loss_of(model: nn.Module, x, y: int) -> torch.Tensor:
    """The cross-entropy of one sample, by its definition."""
    logits = (model(**x) if isinstance(x, dict) else model(x.clone()))[0]
    if len(logits) == 1:
        right = torch.sigmoid(logits[0])
        return -torch.log(right if y else 1 - right)
    return torch.log(torch.exp(logits).sum()) - logits[y]


def slow_curvature(model: nn.Module, x, y: int, digest: bytes, seed: int) -> float:
    """One sample, one vector and one input after the other."""
    generator = np.random.default_rng([seed, int.from_bytes(digest, "big")])
    named = x if isinstance(x, dict) else {"x": x}
    moving = [name for name, value in named.items() if value.is_floating_point()]

    def gradients(shifts) -> list[torch.Tensor]:
        at = {name: (named[name] + STEP * shifts[name]).requires_grad_() for name in moving}
        whole = named | at
        loss = loss_of(model, whole if isinstance(x, dict) else whole["x"], y)
        return [torch.autograd.grad(loss, at[name], retain_graph=True)[0] for name in moving]

    here, total = gradients(dict.fromkeys(moving, 0.0)), 0.0
    for _ in range(DRAWS):
        signs = {}
        for name in moving:
            coins = generator.integers(0, 2, tuple(named[name].shape[1:]), np.int8)
            signs[name] = torch.from_numpy(np.where(coins == 1, 1.0, -1.0))[None]
        for a, b in zip(here, gradients(signs), strict=True):
            total += float(((b - a) ** 2).sum())
    return total / DRAWS


def numpy_state() -> list:
    return np.random.get_state()[1].tolist()  # noqa: NPY002 - the user's global generator


def trust(model, samples, **settings) -> Trusted:
    return verifix.trust(model, samples, **{"count": 30, "progress": False} | settings)


@pytest.mark.parametrize("outputs", [CLASSES, 1])
def test_low_loss_is_the_cross_entropy_of_each_sample_alone(outputs):
    model, (x, y) = net(outputs), data(classes=max(outputs, 2))
    expected = [float(loss_of(evaluated(model), x[i : i + 1], int(y[i])).detach()) for i in range(SAMPLES)]
    found = trust(model, (x, y)).scores
    assert found.shape == (SAMPLES,)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("outputs", [CLASSES, 1])
@pytest.mark.parametrize("seed", [0, 11])
def test_low_curvature_is_the_change_of_each_samples_own_gradient(outputs, seed):
    model, (x, y) = net(outputs), data(classes=max(outputs, 2))
    digests = read_samples((x, y)).digests
    expected = [slow_curvature(evaluated(model), x[i : i + 1], int(y[i]), digests[i], seed) for i in range(SAMPLES)]
    found = trust(model, (x, y), method="low-curvature", seed=seed).scores
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7)


def test_low_curvature_moves_every_floating_input_and_no_other():
    torch.manual_seed(0)
    model, (_, y) = Two().double(), data()
    torch.manual_seed(1)
    inputs = {
        "left": torch.randn(SAMPLES, 4, dtype=torch.float64),
        "right": torch.randn(SAMPLES, 2, 3, dtype=torch.float64),
        "ids": torch.randint(0, 5, (SAMPLES,)),
    }
    digests = read_samples((inputs, y)).digests
    found = trust(model, (inputs, y), method="low-curvature").scores
    for i in range(SAMPLES):
        one = {name: value[i : i + 1] for name, value in inputs.items()}
        assert float(found[i]) == pytest.approx(slow_curvature(model, one, int(y[i]), digests[i], 0), rel=1e-7)


def test_the_curvature_of_a_single_logit_is_the_one_on_paper():
    torch.manual_seed(0)
    model, (x, y) = nn.Linear(6, 1).double(), data(classes=2)
    weight, bias = model.weight[0].detach(), model.bias.detach()
    found = trust(model, (x, y), method="low-curvature").scores
    for i, digest in enumerate(read_samples((x, y)).digests):
        generator = np.random.default_rng([0, int.from_bytes(digest, "big")])
        z = torch.from_numpy(np.stack([2.0 * generator.integers(0, 2, (6,), np.int8) - 1 for _ in range(DRAWS)]))
        slopes = torch.sigmoid((x[i] + STEP * z) @ weight + bias) - torch.sigmoid(x[i] @ weight + bias)
        expected = (slopes**2).mean() * (weight**2).sum()
        assert float(found[i]) == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize("outputs", [CLASSES, 1])
def test_confident_is_what_cleanlab_says_of_the_models_probabilities(outputs):
    from cleanlab.filter import find_label_issues
    from cleanlab.rank import get_label_quality_scores

    model, (x, y) = net(outputs), data(classes=max(outputs, 2))
    with torch.no_grad():
        logits = evaluated(model)(x.clone())
    right = torch.sigmoid(logits) if outputs == 1 else None
    probabilities = (logits.softmax(1) if right is None else torch.cat([1 - right, right], 1)).numpy()
    issues = find_label_issues(y.numpy(), probabilities, n_jobs=1)
    margins = get_label_quality_scores(y.numpy(), probabilities, method="normalized_margin")
    trusted = trust(model, (x, y), method="confident", count=60)
    assert 5 < issues.sum() < SAMPLES - 5
    np.testing.assert_allclose(trusted.scores.numpy(), np.where(issues, 2 - margins, 1 - margins), atol=1e-12)
    assert not issues[trusted.indices].any()
    for label in y.unique().tolist():
        clean = [i for i in range(SAMPLES) if y[i] == label and not issues[i]]
        best = sorted(clean, key=lambda i: -margins[i])[: 60 // max(outputs, 2)]
        assert [i for i in trusted.indices if y[i] == label] == sorted(best)


def test_the_same_number_of_each_class_the_best_first():
    scores = torch.tensor([0.5, 0.1, 0.3, 0.2, 0.9, 0.8, 0.7, 0.6])
    labels = torch.tensor([0, 0, 0, 2, 2, 2, 5, 5])
    names = [bytes([i]) for i in range(8)]
    everything = torch.ones(8, dtype=torch.bool)
    assert choose(scores, labels, everything, names, 3) == ([1, 3, 7], {})
    assert choose(scores, labels, everything, names, 4) == ([1, 2, 3, 7], {})  # the lowest class gets the fourth
    assert choose(scores, labels, everything, names, 9) == (list(range(8)), {5: 1})
    assert choose(scores, labels, torch.arange(8) != 3, names, 3) == ([1, 5, 7], {})
    assert choose(scores, labels, labels != 5, names, 6) == ([1, 2, 3, 5], {5: 2})
    assert choose(0 * scores, labels, everything, names[::-1], 3) == ([2, 5, 7], {})  # equal: by digest


def test_what_falls_short_is_told_and_nothing_takes_its_place():
    x, y = data(60)
    y[y == 2] = 0
    y[[4, 9]] = 2
    trusted = trust(net(), (x, y), count=30)
    assert trusted.shortfall == {2: 8}
    assert trusted.per_class == {0: 10, 1: 10, 2: 2}
    assert trusted.labels.tolist() == y[trusted.indices].tolist()
    assert trusted.as_dict() == {
        "method": "low-loss",
        "count": 22,
        "per_class": {"0": 10, "1": 10, "2": 2},
        "shortfall": {"2": 8},
    }
    assert trusted.summary().splitlines() == [
        "22 of 60 samples trusted by low-loss; nobody verified their labels.",
        "Too few samples to pick from: class 2 lacks 8.",
    ]
    empty = Trusted([], torch.tensor([], dtype=torch.long), trusted.scores, "confident", {1: 3}, trusted.source)
    assert empty.per_class == {1: 0}


@pytest.mark.parametrize("method", TRUST_METHODS)
def test_neither_order_nor_batches_nor_the_container_matter(method):
    model, (x, y) = net(), data()
    order = torch.randperm(SAMPLES)
    first = trust(model, (x, y), method=method)
    for size in (1, 7, 90):
        other = trust(model, (x, y), method=method, batch_size=size)
        torch.testing.assert_close(other.scores, first.scores, rtol=1e-6, atol=1e-12)
        assert other.indices == first.indices
    shuffled = trust(model, (x[order], y[order]), method=method)
    torch.testing.assert_close(shuffled.scores, first.scores[order], rtol=1e-6, atol=1e-12)
    assert sorted(order[shuffled.indices].tolist()) == first.indices
    loader = DataLoader(TensorDataset(x, y), batch_size=16, shuffle=True)
    for source in (loader, TensorDataset(x, y)):
        assert trust(model, source, method=method).indices == first.indices


def test_the_seed_moves_the_vectors_and_nothing_else():
    model, samples = net(), data()
    one, same, two = (trust(model, samples, method="low-curvature", seed=seed).scores for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.allclose(one, two, rtol=1e-3)
    assert torch.equal(trust(model, samples, seed=0).scores, trust(model, samples, seed=1).scores)


class Fragile(Net):
    """Fails at its third call."""

    calls = 0

    def forward(self, x):
        type(self).calls += 1
        if type(self).calls == 3:
            raise RuntimeError("no luck")
        return super().forward(x)


@pytest.mark.parametrize("fails", [False, True], ids=["success", "exception"])
@pytest.mark.parametrize("method", TRUST_METHODS)
def test_the_model_and_the_random_generators_are_left_as_they_were(method, fails):
    model, samples = net(), data()
    if fails:
        model.__class__, Fragile.calls = Fragile, 0
    model.drop.eval()
    model.head.bias.requires_grad_(False)
    F.cross_entropy(model.hidden(samples[0])[:, :CLASSES], samples[1]).backward()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    about = [(p, p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()]
    flags = [module.training for module in model.modules()]
    torch.set_float32_matmul_precision("medium")
    numbers = random.getstate(), numpy_state(), torch.get_rng_state()
    inputs = samples[0].clone()
    try:
        if fails:
            with pytest.raises(verifix.DataError, match="no luck"):
                trust(model, samples, method=method, batch_size=30, outputs="logits")
        else:
            trust(model, samples, method=method, batch_size=30, outputs="logits")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert random.getstate() == numbers[0]
    assert numpy_state() == numbers[1]
    assert torch.equal(torch.get_rng_state(), numbers[2])
    assert torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(samples[0], inputs)
    for (parameter, needs, gradient), now in zip(about, model.parameters(), strict=True):
        assert parameter is now
        assert now.requires_grad == needs
        assert (now.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(now.grad, gradient)


def test_products_are_exact_while_gradients_are_compared():
    seen = set()

    class Watching(Net):
        def forward(self, x):
            seen.add((torch.get_float32_matmul_precision(), torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()))
            return super().forward(x)

    model, (x, y) = Watching().float().eval(), data()
    plain = trust(model, (x.float(), y), method="low-curvature").scores
    seen.clear()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = trust(model, (x.float(), y), method="low-curvature", outputs="logits").scores
    finally:
        torch.set_float32_matmul_precision("highest")
    assert ("highest", False, True) in seen
    assert {state[:2] for state in seen if state[2]} == {("highest", False)}
    torch.testing.assert_close(found, plain)


def test_float32_is_enough_for_the_order():
    model, (x, y) = net(), data()
    exact = trust(model, (x, y), method="low-curvature")
    found = trust(net(dtype=torch.float32), (x.float(), y), method="low-curvature", batch_size=90)
    # The vectors z differ, because they follow the bytes of the input; their mean hardly does.
    assert len(set(exact.indices) & set(found.indices)) >= 24


@pytest.fixture(scope="module")
def spoilt():
    torch.manual_seed(0)
    parts = digits.load(0)
    model = mlp((64, 256, 256, 10), 0, norm=True)
    inputs = parts.inputs[parts.training]
    early = train(model, inputs, parts.given, epochs=5, rate=0.01, batch=50, seed=0)
    return parts, inputs, early, digits.trained(parts, 0)


@pytest.mark.parametrize(
    ("method", "early", "memorised"), [("low-loss", 0.98, 0.8), ("low-curvature", 0.8, 0.76), ("confident", 0.98, 0.8)]
)
def test_trusted_digits_are_cleaner_than_the_rest(spoilt, method, early, memorised):
    parts, inputs, *models = spoilt
    right = parts.given == parts.labels[parts.training]
    assert float(right.double().mean()) == 0.7
    for model, least in zip(models, (early, memorised), strict=True):
        trusted = trust(model, (inputs, parts.given), method=method, count=200)
        assert float(right[trusted.indices].double().mean()) >= least
        assert set(trusted.per_class.values()) == {20}


def test_a_correction_from_trusted_samples_claims_no_gain(spoilt, tmp_path):
    parts, inputs, _, model = spoilt
    trusted = trust(model, (inputs, parts.given), count=200)
    chosen = torch.tensor(trusted.indices)
    correction = verifix.correct(model, trusted.source, verified_from="trusted", alpha=1000.0, progress=False)
    plain = verifix.correct(model, (inputs[chosen], parts.given[chosen]), alpha=1000.0, progress=False)
    assert all(torch.equal(value, plain.corrected[name]) for name, value in correction.corrected.items())
    assert correction.provenance["picked_by"] == "low-loss"
    for found in (correction, Correction.load(correction.save(tmp_path / "c.safetensors"))):
        text = found.summary()
        assert "200 unverified samples (trusted)" in text
        assert "Nothing was verified: these samples were picked by low-loss" in text
        assert "do not estimate a gain, and no gain is claimed" in text
        assert found.as_dict()["unverified"] is True
        assert found.as_dict()["choices"]["project"]["note"] == UNVERIFIED_SCORES
    assert plain.as_dict()["unverified"] is False
    assert "unverified" not in plain.summary()
    assert plain.caution == ""


def test_a_strength_chosen_on_trusted_samples_is_labelled_and_no_change_is_explained(spoilt):
    parts, inputs, _, model = spoilt
    trusted = trust(model, (inputs, parts.given), count=200)
    correction = verifix.correct(model, trusted.source, verified_from="trusted", progress=False)
    assert correction.alpha is None
    assert "overstate the gain" not in correction.summary()
    assert "give alpha as a number" in correction.summary()
    assert len(correction.as_dict()["choices"]["project"]["points"]) > 5
    own = inputs[:200], parts.given[:200]
    correction = verifix.correct(model, own, verified_from="trusted", alpha=100.0, progress=False)
    assert correction.caution.startswith("Nothing was verified: these samples were picked, and some")
    assert "give alpha" not in correction.caution


def bad() -> dict:
    model, (x, y) = net(), data()
    token_model = nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3))
    ids = torch.randint(0, 9, (SAMPLES, 3), generator=torch.Generator().manual_seed(0))

    class Blind(Net):
        @torch.no_grad()
        def forward(self, x):
            return super().forward(x)

    class Steps(Net):
        def forward(self, x):
            return super().forward(torch.nan_to_num(x.sqrt()) + x)

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no way\nback")

    class NoWay(Net):
        def forward(self, x):
            return super().forward(Broken.apply(x))

    curved, usage, unfit = {"method": "low-curvature"}, verifix.UsageError, verifix.DataError
    half = x.bfloat16(), y
    return {
        "method": (model, (x, y), {"method": "magic"}, usage, "method is 'magic'; it must be one of 'low-loss', "),
        "count": (model, (x, y), {"count": 2.5}, usage, "count is 2.5; it must be a whole number of 2 or more"),
        "count of none": (model, (x, y), {"count": 0}, usage, "count is 0; it must be a whole number"),
        "classes": (model, (x, y), {"count": 2}, usage, "count is 2, but the data has 3 classes"),
        "labels": (model, (x, y + 1), {}, unfit, "has label 3, but the model has 3 outputs"),
        "negative labels": (model, (x, y - 1), {}, unfit, "has label -1"),
        "one sample": (model, (x[:1], y[:1]), {}, unfit, "there is 1 sample to pick from"),
        "ids": (token_model, (ids, y), curved, unfit, "these samples have none (token ids cannot be perturbed)"),
        "half inputs": (net(dtype=torch.float32), half, curved, unfit, "the inputs are bfloat16, in which a step of"),
        "half model": (net(dtype=torch.bfloat16), half, curved, unfit, "the model's weights are bfloat16, in which"),
        "half inputs, cast": (
            net(),
            half,
            curved | {"forward": lambda m, z: m(z.double())},
            unfit,
            "the inputs are bfloat16, in which a step of 0.001 is lost",
        ),
        "no gradient": (Blind().double(), (x, y), curved, unfit, "no gradient with respect to its inputs, so"),
        "no way back": (NoWay().double(), (x, y), curved, unfit, "respect to its inputs (no way back), so"),
        "not finite": (Steps().double(), (x.abs() * (x > 0), y), curved, unfit, "inputs is not finite"),
        "NaN": (model, (x / 0, y), {}, unfit, "the input of sample 0 contains NaN or Inf"),
        "seed": (model, (x, y), {"seed": -1}, usage, "seed is -1"),
        "device": (model, (x, y), {"device": "warp"}, usage, "device 'warp' is not available"),
        "batch size": (model, (x, y), {"batch_size": 0}, usage, "batch_size is 0"),
        "data": (model, "x.csv", {}, usage, "must be a DataLoader, a Dataset"),
        "model": ("net", (x, y), {}, usage, "must be a torch.nn.Module"),
    }


@pytest.mark.parametrize("name", bad())
def test_bad_input_gets_one_clear_line(name):
    model, samples, settings, error, text = bad()[name]
    with pytest.raises(error) as caught:
        trust(model, samples, **settings)
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    if name in ("ids", "half model"):
        assert len(trust(model, samples, method="low-loss").indices) == 30


def test_a_missing_cleanlab_is_told_with_how_to_install_it(monkeypatch):
    for name in ("cleanlab", "cleanlab.filter", "cleanlab.rank"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        verifix.UsageError, match=r"cleanlab cannot be imported .*pip install 'verifix\[label-errors\]'"
    ):
        trust(net(), data(), method="confident")
    assert len(trust(net(), data()).indices) == 30


def test_picked_samples_do_not_pass_for_verified():
    model, samples = net(), data()
    trusted = trust(model, samples, count=60)
    for claim in ("unseen", "training"):
        with pytest.raises(
            verifix.UsageError, match=f"verified_from is '{claim}', but these samples were picked by low"
        ):
            verifix.correct(model, trusted.source, verified_from=claim, alpha=9.0, progress=False)
    few = trust(model, samples, count=30)
    with pytest.raises(verifix.DataError, match="30 trusted samples, but choosing a strength needs at least 50; pick"):
        verifix.correct(model, few.source, verified_from="trusted", progress=False)
    assert len(read_samples(trusted.source)) == 60


def test_batches_shrink_when_memory_runs_out():
    class Big(Net):
        def forward(self, x):
            if len(x) > 20:
                raise torch.OutOfMemoryError("too much")
            return super().forward(x)

    x, y = data()
    model = Big().double()
    for method in TRUST_METHODS:
        assert trust(model, (x, y), method=method).indices == trust(model, (x, y), method=method, batch_size=9).indices
        with pytest.raises(verifix.VerifixError, match="memory ran out with batches of 30"):
            trust(model, (x, y), method=method, batch_size=30)
