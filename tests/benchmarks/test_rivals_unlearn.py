"""Rivals from unlearning and spectral truncation, each against its equations worked out by hand in another way."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.methods.base import NO_CHANGE, Case, answered, contexts, counted, predictor
from benchmarks.methods.cuts import RATE, TaskSpace, corrupted_labels, mistakes
from benchmarks.methods.published import ALPHAS, Draw, Published, PublishedOracle, drawn_rows
from benchmarks.methods.scrub import MAX_EPOCHS, Scrub, divergence, obedience
from benchmarks.methods.ssd import MOST, SelectiveDampening, some
from benchmarks.methods.steps import LONGEST, MOMENTUM, Steps, momentum, trained
from benchmarks.methods.truncation import SOURCES, Truncation
from torch import nn

from tests.cases import slow_projection
from tests.stage_cases import inputs_of, memorised, same, with_run
from verifix.capture.collect import collect
from verifix.capture.layer import read_matrix
from verifix.losses import cross_entropy
from verifix.model.borrow import borrowed
from verifix.model.clone import copy_model
from verifix.model.samples import read_samples
from verifix.projection import prepare
from verifix.recipe.stages.finetune import Training

CLASSES, WIDTH = 3, 5
RIVALS = (SelectiveDampening, Scrub, TaskSpace, Truncation, Published, PublishedOracle)


def data(count: int, seed: int, width: int = WIDTH) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return x, (x @ torch.randn(width, CLASSES, generator=generator, dtype=torch.float64)).argmax(dim=1)


def linear(bias: bool = True, width: int = WIDTH) -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(width, CLASSES, bias=bias)).double().eval()


def network() -> nn.Module:
    torch.manual_seed(4)
    layers = [nn.Linear(WIDTH, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES)]
    return nn.Sequential(*layers).double().eval()


def case_of(model: nn.Module, verified: int = 30, training: int = 20, width: int = WIDTH, seed: int = 0) -> Case:
    """Every third training label is wrong, and half of the training samples have been checked."""
    x, truth = data(training, 2, width)
    given = torch.where(torch.arange(training) % 3 == 0, (truth + 1) % CLASSES, truth)
    checked = tuple(range(training // 2))
    samples = read_samples(data(verified, 1, width))
    return Case(model, samples, read_samples((x, given)), truth, checked, lambda _: model, CLASSES, seed)


@contextmanager
def lent(case: Case, fold: int | None = None):
    """The context of all verified samples, or of all but one fold."""
    model = copy_model(case.model)
    with borrowed(model):
        whole, parts = contexts(case, model)
        yield whole if fold is None else parts[fold]


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def logits_by_hand(model: nn.Module, x: torch.Tensor) -> np.ndarray:
    return (x @ model[0].weight.detach().T + model[0].bias.detach()).numpy()


def fisher_by_hand(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Of a linear softmax model: ∂ log p(y | x) / ∂W = (onehot(y) − p) xᵀ, sample by sample."""
    weight, bias = np.zeros((CLASSES, x.shape[1])), np.zeros(CLASSES)
    for row, label in zip(x, y, strict=True):
        slope = np.eye(CLASSES)[int(label)] - softmax(logits_by_hand(model, row[None]))[0]
        weight += np.outer(slope, row.numpy()) ** 2 / len(y)
        bias += slope**2 / len(y)
    return weight, bias


def test_the_forgotten_are_the_checked_samples_with_wrong_labels():
    assert case_of(linear()).known_wrong == [0, 3, 6, 9]


@pytest.mark.parametrize(("alpha", "share"), [(0.5, 0.3), (1.0, 1.0), (0.8, 1.1)])
@pytest.mark.parametrize("fold", [None, 2])
def test_ssd_dampens_logistic_regression_as_worked_out_by_hand(alpha, share, fold):
    case = case_of(linear())
    x, given = data(20, 2)[0], case.training.labels
    wrong = torch.tensor(case.known_wrong)
    forgotten = fisher_by_hand(case.model, x[wrong], given[wrong])
    kept = fisher_by_hand(case.model, x, given)
    with lent(case, fold) as context:
        found = SelectiveDampening(case, context).fit((alpha, share / alpha))
    changed = 0
    for name, keep, forget in zip(("0.weight", "0.bias"), kept, forgotten, strict=True):
        expected = case.model.get_parameter(name).detach().clone()
        for place in np.ndindex(*keep.shape):
            if forget[place] > alpha * keep[place]:
                expected[place] *= min(share * keep[place] / forget[place], 1)
                changed += share * keep[place] < forget[place]
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-12)
    assert 0 < changed < (WIDTH + 1) * CLASSES


def test_eight_settings_of_ssd_or_more_change_something_and_the_published_one_is_there():
    case = case_of(memorised(network(), *data(60, 2)), training=60)
    with lent(case) as context:
        method = SelectiveDampening(case, context)
        settings = method.candidates().strengths
        updates = [torch.cat([x.flatten() for x in method.fit(strength).values()]) for strength in settings]
        before = torch.cat([context.parameter(name).flatten() for name in method.fit(settings[0])])
    assert len({update.numpy().tobytes() for update in [*updates, before]}) > 8
    assert (10.0, 0.1) in settings  # α 10, λ 1


def test_ssd_runs_at_most_so_many_samples():
    case = case_of(linear(), training=2 * MOST + 100)
    with lent(case) as context, counted(nn.Sequential) as runs, SelectiveDampening.open(case) as prepare:
        prepare(context).fit((1.0, 1.0))
        assert runs[0] == 3 * (len(case.known_wrong) + MOST)
        prepare(context.without(0)).fit((2.0, 0.1))  # the importances are those of before
    assert len(case.known_wrong) < MOST < len(case.training)
    assert runs[0] == 3 * (len(case.known_wrong) + MOST)
    drawn = some(range(100, 200), 40, seed=1)
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 40
    assert set(drawn) < set(range(100, 200))
    assert some(range(30), 40, seed=1) == list(range(30))


def by_hand(model: nn.Module, passes, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """SGD with momentum on a linear softmax model; each pass says from (weight, bias) where to: inputs and slopes."""
    weight, bias = (p.detach().numpy().copy() for p in (model[0].weight, model[0].bias))
    speed = [np.zeros_like(weight), np.zeros_like(bias)]
    for x, slope_of in passes:
        slope = slope_of(softmax(x @ weight.T + bias)) / len(x)  # of the loss, by the logits
        speed = [MOMENTUM * speed[0] + slope.T @ x, MOMENTUM * speed[1] + slope.sum(axis=0)]
        weight, bias = weight - rate * speed[0], bias - rate * speed[1]
    return weight, bias


@pytest.mark.parametrize("epochs", [1, 2, MAX_EPOCHS + 2])
@pytest.mark.parametrize("fold", [None, 2])
def test_scrub_takes_the_steps_of_its_equations(epochs, fold):
    case, rate = case_of(linear()), 0.3
    wrong = data(20, 2)[0][case.known_wrong]
    with lent(case, fold) as context:
        found = Scrub(case, context).fit((rate, float(epochs)))
        x, y = (part[context.indices] for part in data(30, 1))
    onehot = np.eye(CLASSES)[y.numpy()]
    said_kept, said_wrong = (softmax(logits_by_hand(case.model, part)) for part in (x, wrong))
    disobey = (wrong.numpy(), lambda p: -(p - said_wrong))
    obey = (x.numpy(), lambda p: 0.5 * (p - said_kept) + 1.0 * (p - onehot))
    passes = [step for k in range(epochs) for step in ([disobey, obey] if k < MAX_EPOCHS else [obey])]
    weight, bias = by_hand(case.model, passes, rate)
    np.testing.assert_allclose(found["0.weight"].numpy(), weight, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found["0.bias"].numpy(), bias, rtol=1e-9, atol=1e-12)


def test_obedience_is_cross_entropy_without_the_teacher_and_divergence_without_labels():
    (teacher, labels), student = data(7, 5, CLASSES), data(7, 6, CLASSES)[0]
    p, q = softmax(teacher.numpy()), softmax(student.numpy())
    kl = sum(p[i, k] * math.log(p[i, k] / q[i, k]) for i in range(7) for k in range(CLASSES)) / 7
    ce = -sum(math.log(q[i, int(label)]) for i, label in enumerate(labels)) / 7
    assert float(divergence(teacher, student)) == pytest.approx(kl, rel=1e-12)
    assert float(obedience(teacher, student, labels, 0.0, 1.0)) == pytest.approx(ce, rel=1e-12)
    assert float(obedience(teacher, student, labels, 1.0, 0.0)) == pytest.approx(kl, rel=1e-12)
    assert float(obedience(teacher, student, labels, 0.2, 3.0)) == pytest.approx(0.2 * kl + 3 * ce, rel=1e-12)


def test_one_logit_counts_as_two_classes():
    teacher, student = torch.tensor([[0.3], [-2.0]]), torch.tensor([[1.0], [0.5]])
    p, q = (1 / (1 + np.exp(-z.numpy().astype(float))) for z in (teacher, student))
    expected = (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean()
    assert float(divergence(teacher, student)) == pytest.approx(expected, rel=1e-5)


def test_a_training_keeps_what_it_was_asked_for_and_goes_on_from_there():
    case = case_of(network())
    with lent(case) as context:
        scrub = Scrub(case, context)
        found = [scrub.fit((0.05, epochs)) for epochs in (2.0, 4.0, 2.0)]
    with lent(case) as context:
        scrub = Scrub(case, context)
        assert same(found[1], scrub.fit((0.05, 4.0)))
        with pytest.raises(ValueError, match="3 was not kept"):
            scrub.trainings[0.05].after(3)
    assert same(found[0], found[2])
    assert not same(found[0], found[1])


def test_a_training_that_runs_off_ends_before_it_does():
    case = case_of(linear())
    with lent(case) as context:
        assert same(Scrub(case, context).fit((1e9, 4.0)), dict(context.run.model.named_parameters()))
        steps = Steps(context, momentum(0.1))
        late = (0.0, 1.0, 2.0, math.nan, math.inf, 0.0)
        training = Training(trained(steps, lambda number: steps.weights["0.bias"].fill_(late[number])))
        assert training.after(3)["0.bias"].tolist() == training.after(6)["0.bias"].tolist() == [2.0, 2.0, 2.0]


def test_long_gradients_are_cut():
    case = case_of(linear())
    with lent(case) as context:
        steps = Steps(context, momentum(1.0))
        before = {name: weight.clone() for name, weight in steps.weights.items()}
        steps.epoch(context.run.samples, context.indices, lambda logits, _: 1e6 * logits[:, 0].sum())
        moved = torch.cat([(steps.weights[name] - before[name]).flatten() for name in before])
        assert float(moved.norm()) == pytest.approx(LONGEST, rel=1e-6)


class TwoBiases(nn.Module):
    """The gradients of its two parameters are one tensor."""

    def __init__(self):
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.zeros(CLASSES, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        return x[:, :CLASSES] + (self.first + self.second)


def test_a_gradient_that_two_parameters_share_is_cut_once():
    case = case_of(linear())
    with lent(case) as context:
        model = TwoBiases()
        steps = Steps(with_run(context, model=model), momentum(1.0))
        steps.epoch(context.run.samples, context.indices, lambda logits, _: 1e6 * logits[:, 0].sum())
        assert [float(w.norm()) for w in steps.weights.values()] == pytest.approx([LONGEST / 2**0.5] * 2, rel=1e-6)


def test_a_rate_of_zero_trains_nothing_and_flags_come_back():
    case = case_of(network())
    with lent(case) as context:
        context.run.model[0].weight.requires_grad_(False)
        steps = Steps(context, momentum(0.0))
        training = Training(
            trained(steps, lambda _: steps.epoch(context.run.samples, context.indices, lambda z, _: z.sum()))
        )
        own = {name: p.detach() for name, p in context.run.model.named_parameters() if p.requires_grad}
        assert same(training.after(2), own)
        assert [p.requires_grad for p in context.run.model.parameters()] == [False] + 7 * [True]


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 0.4, 3.0])
@pytest.mark.parametrize("fold", [None, 1])
def test_cuts_goes_back_what_training_on_wrong_labels_goes_forward(epochs, scale, fold):
    case = case_of(linear())
    before = {name: p.detach().clone() for name, p in case.model.named_parameters()}
    with lent(case, fold) as context:
        found = TaskSpace(case, context).fit((float(epochs), scale))
        x = data(30, 1)[0][context.indices]
        wrong = corrupted_labels(case.verified.labels, mistakes(case), 0)[context.indices]
    if scale == 0:
        assert same(found, before)
    step = (x.numpy(), lambda p: p - np.eye(CLASSES)[wrong.numpy()])
    corrupted = by_hand(case.model, [step] * epochs, RATE)
    for (name, value), end in zip(before.items(), corrupted, strict=True):
        expected = value.numpy() - scale * (end - value.numpy())
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-10, atol=1e-13)
    if epochs == 1:  # θ + s · rate · ∇L
        twin = copy_model(case.model)
        cross_entropy(twin(x), wrong).mean().backward()
        for name, parameter in twin.named_parameters():
            expected = before[name] + scale * RATE * parameter.grad
            torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-13)


def test_corrupted_labels_are_all_wrong_and_even():
    labels = torch.arange(4).repeat(3000)
    even = (torch.ones(4, 4) - torch.eye(4)) / 3
    wrong = corrupted_labels(labels, even, seed=5)
    table = torch.bincount(4 * labels + wrong, minlength=16).reshape(4, 4)
    assert bool((table.diagonal() == 0).all())
    assert int(table[~torch.eye(4, dtype=torch.bool)].min()) > 900
    assert int(table.max()) < 1100
    assert not torch.equal(wrong, corrupted_labels(labels, even, seed=6))


def test_the_proxy_goes_wrong_as_the_checked_labels_do():
    case = case_of(linear(), training=60)
    counts = np.zeros((CLASSES, CLASSES))
    for i in case.checked:
        counts[int(case.truth[i]), int(case.training.labels[i])] += 1
    shares = mistakes(case)
    for y in range(CLASSES):
        others = [k for k in range(CLASSES) if k != y]
        total = sum(counts[y, others]) + 1
        assert shares[y, others].tolist() == pytest.approx([(counts[y, k] + 0.5) / total for k in others])
        assert shares[y, y] == 0
    assert float(shares.max()) > 0.8  # wrong labels of this case are all one class on
    wrong = corrupted_labels(torch.arange(CLASSES).repeat(500), shares, seed=0)
    assert float((wrong == (torch.arange(CLASSES).repeat(500) + 1) % CLASSES).double().mean()) > 0.8


@pytest.mark.parametrize("count", [1, 3, 8])
@pytest.mark.parametrize("fold", [None, 3])
@pytest.mark.parametrize("source", SOURCES)
def test_truncation_projects_the_features_before_the_head(count, fold, source):
    model = network()
    case = case_of(memorised(model, *data(30, 1)))
    with lent(case, fold) as context:
        found = Truncation(case, context).fit((float(count), float(source)))
        seen = inputs_of(context.run.model, data(20, 2)[0] if source else data(30, 1)[0][context.indices])["5.weight"]
        new = data(40, 9)[0]
        features = inputs_of(context.run.model, new)["5.weight"]
        plain = context.run.model(new)
        twin = predictor(context.run.model, found)(read_samples((new, torch.arange(40) % 3)), range(40))
    mean = seen.mean(dim=0)
    directions = torch.linalg.eigh(torch.cov(seen.T)).eigenvectors[:, -count:]
    weight, bias = model[5].weight.detach(), model[5].bias.detach()
    kept = mean + (features - mean) @ directions @ directions.T
    torch.testing.assert_close(twin, kept @ weight.T + bias, rtol=1e-8, atol=1e-8)
    assert set(found) == {"5.weight", "5.bias"}
    if count == 8:
        torch.testing.assert_close(twin, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("bias", [True, False])
def test_truncation_takes_planted_noise_off(bias):
    model, generator = linear(bias, width=6), torch.Generator().manual_seed(8)
    basis, _ = torch.linalg.qr(torch.randn(6, 6, generator=generator, dtype=torch.float64))
    signal = 5 * torch.randn(30, 2, generator=generator, dtype=torch.float64) + 3.0
    if not bias:
        signal[:, 0] = 3.0  # a mean has a direction of its own, which only features that are not centred show
    apart, _ = torch.linalg.qr(torch.cat([torch.ones(30, 1), signal, torch.randn(30, 4, generator=generator)], dim=1))
    noise = 0.1 * apart[:, -4:]  # of mean 0, and uncorrelated with the signal
    x = signal @ basis[:, :2].T + noise @ basis[:, 2:].T
    case = case_of(model, width=6)
    case = replace(case, verified=read_samples((x, torch.arange(30) % CLASSES)))
    with lent(case) as context:
        found = Truncation(case, context).fit((2.0, 0.0))
        clean = torch.randn(9, 2, generator=generator, dtype=torch.float64) @ basis[:, :2].T
        loud = clean + 100 * torch.randn(9, 4, generator=generator, dtype=torch.float64) @ basis[:, 2:].T
        logits = predictor(context.run.model, found)(read_samples((loud, torch.arange(9) % 3)), range(9))
    torch.testing.assert_close(logits, model(clean).detach(), rtol=1e-8, atol=1e-8)


def convolutions() -> nn.Module:
    torch.manual_seed(6)
    body = [nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 2, groups=2), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(6, CLASSES)).double().eval()


def moments_of(context) -> dict:
    size, device = context.run.batch_size, context.run.device
    found = collect(context.run.model, context.run.samples, [context.indices], batch_size=size, device=device)
    return dict(found.folds[0])


@pytest.mark.parametrize("alpha", [2.0, ALPHAS[0], ALPHAS[-1]])
@pytest.mark.parametrize("fold", [None, 4])
def test_published_is_the_projection_in_float32(alpha, fold):
    for model, width in ((network(), WIDTH), (convolutions(), 16)):
        case = case_of(model, width=width)
        with lent(case, fold) as context:
            found, moments = Published(case, context).fit((alpha,)), moments_of(context)
            assert set(found) == {layer.parameter for layer in context.layers}
            for layer in context.layers:
                weight = read_matrix(layer, context.parameter)
                expected = prepare(weight, moments[layer]).project(alpha)
                new = read_matrix(layer, found.__getitem__)
                # A large α keeps next to everything; that it still changes something is seen where it changes most.
                assert float((new - weight).norm()) > 1e-6 or alpha == ALPHAS[-1]
                torch.testing.assert_close(new, expected, rtol=0, atol=2e-5 * float(weight.abs().max()))


def test_endless_alpha_is_the_projector_on_what_the_samples_span():
    model = linear(width=12)
    case = case_of(model, verified=7, width=12)
    with lent(case) as context:
        new = Published(case, context).fit((1e12,))["0.weight"]
    x = data(7, 1, 12)[0]
    beyond = torch.linalg.svd(x).Vh[7:]
    torch.testing.assert_close(x @ new.T, x @ model[0].weight.T.detach(), rtol=0, atol=1e-5)
    assert float((beyond @ new.T).abs().max()) < 1e-6
    assert float((beyond @ model[0].weight.detach().T).abs().max()) > 0.1


def test_a_layer_that_sees_zeros_keeps_its_weight():
    model = network()
    with torch.no_grad():
        model[1].bias.fill_(-100.0)
    case = case_of(model)
    with lent(case) as context:
        found = Published(case, context).fit((1e4,))
    torch.testing.assert_close(found["3.weight"], model[3].weight.detach(), rtol=1e-6, atol=0)
    assert not torch.equal(found["0.weight"], model[0].weight)


def test_rows_beyond_the_cap_are_drawn_evenly():
    stream = torch.arange(30.0).reshape(1, 30, 1)
    counts = torch.zeros(30)
    for seed in range(300):
        draw = Draw(10, seed)
        for chunk in stream.split(7, dim=1):
            draw.add(chunk)
        kept = draw.rows.flatten().long()
        generator = torch.Generator().manual_seed(seed)
        keys = torch.cat([torch.rand(size, generator=generator, dtype=torch.float64) for size in (7, 7, 7, 7, 2)])
        assert kept.tolist() == keys.argsort()[:10].sort().values.tolist()
        assert len(kept) == len(set(kept.tolist())) == 10
        counts[kept] += 1
    assert bool(((counts > 60) & (counts < 140)).all())  # 100 ± 5 standard deviations


def test_a_capped_layer_is_decomposed_on_the_rows_that_were_drawn():
    class Few(Published):
        rows = 9

    case = case_of(convolutions(), width=16)
    with lent(case) as context:
        drawn = {layer: draw.rows for layer, draw in drawn_rows(context, 9).items()}
        every = drawn_rows(context, 10_000)
        found = Few(case, context).fit((1e4,))
        for layer, rows in drawn.items():
            assert rows.shape[1] == 9 < every[layer].rows.shape[1]
            assert bool((rows[:, :, None] == every[layer].rows[:, None]).all(dim=-1).any(dim=-1).all())
            weight = read_matrix(layer, context.parameter)
            expected = slow_projection(weight, rows.double(), 1e4)
            torch.testing.assert_close(read_matrix(layer, found.__getitem__), expected, rtol=0, atol=2e-5)


class Wide(PublishedOracle):
    alphas = (1.0, 10.0, 1e2, 1e3, 1e6)


def test_the_oracle_takes_the_best_alpha_for_the_true_labels_of_the_training_samples():
    chosen = set()
    for seed in range(4):
        torch.manual_seed(seed)
        model = memorised(network(), *data(30, 1), steps=5 + 20 * seed)
        case = replace(case_of(model, training=60), truth=torch.randint(0, 3, (60,)))
        right = []
        with lent(case) as context:
            oracle = Wide(case, context)
            found, moments = oracle.fit(()), moments_of(context)
            for alpha in Wide.alphas:
                twin = copy_model(model)
                for layer in context.layers:
                    weight = read_matrix(layer, context.parameter)
                    new = prepare(weight, moments[layer]).project(alpha)
                    twin.get_parameter(layer.parameter).data.copy_(new[0])
                right.append(int((twin(data(60, 2)[0]).argmax(dim=1) == case.truth).sum()))
            assert oracle.settled == Wide.alphas[right.index(max(right))]
            assert same(found, Published(case, context).fit((oracle.settled,)))
        chosen.add(oracle.settled)
    assert len(chosen) > 1


@pytest.mark.slow
@pytest.mark.parametrize("rival", RIVALS)
def test_every_rival_runs_from_end_to_end_and_leaves_the_network_alone(rival):
    model = memorised(network().float(), *((p.float() if p.is_floating_point() else p) for p in data(40, 1)))
    (x, y), (z, truth) = data(40, 1), data(20, 2)
    given = torch.where(torch.arange(20) % 3 == 0, (truth + 1) % CLASSES, truth)
    samples = read_samples((x.float(), y)), read_samples((z.float(), given))
    case = Case(model, *samples, truth, tuple(range(20)), lambda _: model, CLASSES)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    answer = answered(rival, case)
    assert answer.obstacle == ""
    assert len(answer.tried) >= (0 if rival is PublishedOracle else 9)
    logits = answer.predict(case.training, range(20))
    assert logits.shape == (20, CLASSES)
    assert torch.equal(logits, model(z.float()).double()) == (answer.chosen == NO_CHANGE)
    assert same(before, model.state_dict())


@pytest.mark.parametrize("rival", [SelectiveDampening, Scrub])
def test_without_known_wrong_labels_there_is_nothing_to_forget(rival):
    case = replace(case_of(linear()), checked=(1, 2))
    answer = answered(rival, case)
    assert answer.obstacle == "no training sample is known to have a wrong label"
    torch.testing.assert_close(answer.predict(case.verified, [0]), case.model(data(30, 1)[0][:1]).detach())


def test_without_a_linear_head_nothing_is_truncated():
    model = nn.Sequential(nn.Unflatten(1, (1, WIDTH)), nn.Conv1d(1, CLASSES, 3), nn.AdaptiveMaxPool1d(1), nn.Flatten())
    answer = answered(Truncation, case_of(model.double().eval()))
    assert answer.obstacle == "no linear layer that may be corrected gives the logits"
