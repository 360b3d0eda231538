"""The cases that the methods are compared on: parts that share nothing, sizes that are nested, seeds that decide."""

from __future__ import annotations

from dataclasses import replace

import pyarrow.parquet
import pytest
import torch
from benchmarks.methods.base import counted
from benchmarks.noise import realised
from benchmarks.small_resnet import SmallResNet
from benchmarks.tasks import TASKS, case, stratified_order

from benchmarks import tasks, texts_and_vit
from verifix.cli.demo import digits, spiral
from verifix.cli.demo.training import train
from verifix.errors import UsageError

FULL = {name: getattr(tasks, name) for name in ("DIGITS", "SPIRALS", "VIT", "BERT", "RESNET")}


@pytest.fixture(autouse=True)
def _small_and_new(monkeypatch):
    """A pass or two over the samples, few texts, and nothing remembered from the test before."""
    for name, learner in FULL.items():
        monkeypatch.setattr(tasks, name, replace(learner, epochs=2 if name == "DIGITS" else 1))
    for name, count in {"PER_PACKAGE": 150, "TRAINING": 160, "VERIFIED": 20}.items():
        monkeypatch.setattr(texts_and_vit, name, count)
    for memo in (tasks._data, tasks._trained, tasks._cifar10_test):
        memo.cache_clear()


def same_weights(one, other):
    states = one.state_dict(), other.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def stacked(samples):
    (batch,) = samples.batches(range(len(samples)), len(samples))
    assert torch.equal(batch.labels, samples.labels)
    return batch.inputs


def digests(samples):
    return set(samples.digests)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "architecture", "sizes"),
    [("digits", "mlp", (1000, 397)), ("spirals", "mlp", (250, 2000)), ("texts", "bert", (160, None))],
)
def test_parts_share_no_input_and_sizes_are_nested(vision, task, architecture, sizes):
    largest = TASKS[task].sizes[-1]
    big, unseen = case(task, architecture, "symmetric", 0.3, largest, 1)
    small, same = case(task, architecture, "symmetric", 0.3, 50, 1)
    assert len(big.training) == sizes[0]
    assert len(unseen) == (sizes[1] or len(unseen))  # the number of texts without a copy is not ours
    assert not digests(big.verified) & digests(unseen)
    assert not digests(big.training) & (digests(big.verified) | digests(unseen))
    assert small.verified.digests == big.verified.digests[:50]
    assert torch.equal(small.verified.labels, big.verified.labels[:50])
    share = torch.bincount(big.verified.labels, minlength=big.classes) / largest
    assert (torch.bincount(small.verified.labels, minlength=big.classes) - 50 * share).abs().max() <= 2
    assert small.checked == big.checked[:50]
    assert len(set(big.checked)) == min(largest, sizes[0])
    assert (same.digest(), small.training.digests) == (unseen.digest(), big.training.digests)
    assert small.model is big.model  # trained once


def test_every_combination_in_the_table_has_its_noise():
    listed = [
        (task, architecture, noise, rate)
        for task in ("digits", "spirals")
        for architecture, rates in TASKS[task].networks.items()
        for noise in rates
        for rate in rates[noise]
    ]
    for task, architecture, noise, rate in listed:
        data = tasks._data(task, architecture, 0, None)
        found = tasks._noise(data, noise, rate, 0)
        most = 0.5 * rate if noise == "asymmetric" else rate
        slack = 0.01 if noise != "instance" else 0.07  # 250 spirals
        assert found.wrong == pytest.approx(most, abs=slack), (task, noise, rate)
        assert (found.wrong == 0) == (rate == 0)


def test_a_seed_gives_the_same_case_again_and_another_another():
    first, unseen = case("digits", "mlp", "instance", 0.3, 100, 2)
    tasks._data.cache_clear(), tasks._trained.cache_clear()
    again, unseen_again = case("digits", "mlp", "instance", 0.3, 100, 2)
    other, _ = case("digits", "mlp", "instance", 0.3, 100, 3)
    assert again.model is not first.model
    assert same_weights(first.model, again.model)
    assert (first.verified.digest(), unseen.digest()) == (again.verified.digest(), unseen_again.digest())
    assert torch.equal(first.training.labels, again.training.labels)
    assert (first.checked, first.seed) == (again.checked, 2)
    assert not same_weights(first.model, other.model)
    assert first.verified.digest() != other.verified.digest()
    assert first.checked != other.checked


def test_the_digits_are_those_of_the_demo(monkeypatch):
    monkeypatch.setattr(tasks, "DIGITS", FULL["DIGITS"])
    data = digits.load(0)
    found, unseen = case("digits", "mlp", "symmetric", 0.3, 400, 0)
    assert torch.equal(stacked(found.training), data.inputs[data.training])
    assert torch.equal(found.training.labels, data.given)
    assert torch.equal(found.truth, data.labels[data.training])
    assert same_weights(found.model, digits.trained(data, 0))
    assert len(digests(found.training) | digests(found.verified) | digests(unseen)) == 1797
    wrong = (data.given != data.labels[data.training]).nonzero().flatten().tolist()
    assert sorted(found.known_wrong) == sorted(set(wrong) & set(found.checked))


def test_the_spirals_are_those_of_the_demo():
    found, unseen = case("spirals", "mlp", "symmetric", 0.25, 200, 1)
    x, true = spiral.spirals(spiral.TRAINING, 3)
    assert torch.equal(stacked(found.training), x)
    assert torch.equal(found.truth, true)
    assert torch.equal(stacked(found.verified), spiral.spirals(200, 4)[0])
    assert torch.equal(stacked(unseen), spiral.spirals(2000, 5)[0])
    learner = FULL["SPIRALS"]
    assert same_weights(learner.build(1), tasks.mlp((2, 512, 512, 512, 2), 1, norm=True))
    assert (learner.train, learner.epochs, learner.rate, learner.batch) == (train, 400, 0.01, spiral.TRAINING)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["texts", "pictures"])
def test_transformers_are_trained_as_in_their_own_benchmark(vision, name):
    task = getattr(texts_and_vit, name)(0)
    found = case(*{"texts": ("texts", "bert"), "pictures": ("digits", "vit")}[name], "symmetric", 0.3, 50, 0)[0]
    assert same_weights(found.model, texts_and_vit.trained(replace(task, epochs=1), 0))
    learner = {"texts": FULL["BERT"], "pictures": FULL["VIT"]}[name]
    assert (learner.epochs, learner.rate, learner.batch) == (task.epochs, task.rate, task.batch)


def test_without_noise_a_network_learns_the_true_labels(monkeypatch):
    monkeypatch.setattr(tasks, "DIGITS", replace(FULL["DIGITS"], epochs=10))
    found, unseen = case("digits", "mlp", "symmetric", 0.0, 50, 0)
    assert torch.equal(found.training.labels, found.truth)
    assert not found.known_wrong
    with torch.no_grad():
        assert float((found.model(stacked(unseen)).argmax(1) == unseen.labels).double().mean()) > 0.95


def test_training_again_gives_the_same_network_from_the_same_labels_only():
    found, _ = case("digits", "mlp", "asymmetric", 0.3, 50, 0)
    again = found.train(found.training.labels)
    assert again is not found.model
    assert same_weights(again, found.model)
    assert not same_weights(found.train(found.truth), found.model)


def test_stored_weights_are_used_and_belong_to_one_network_only(tmp_path):
    found, _ = case("digits", "mlp", "symmetric", 0.3, 50, 0, cache=tmp_path)
    (path,) = tmp_path.iterdir()
    written = path.stat().st_mtime_ns
    tasks._trained.cache_clear()
    again, _ = case("digits", "mlp", "symmetric", 0.3, 50, 0, cache=tmp_path)
    assert same_weights(again.model, found.model)
    assert not again.model.training
    assert path.stat().st_mtime_ns == written
    case("digits", "mlp", "symmetric", 0.2, 50, 0, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    zeros = {name: torch.zeros_like(tensor) for name, tensor in found.model.state_dict().items()}
    tasks.save_file(zeros, path)
    tasks._trained.cache_clear()
    assert not case("digits", "mlp", "symmetric", 0.3, 50, 0, cache=tmp_path)[0].model[0].weight.any()  # really read


def test_the_key_of_stored_weights_depends_on_everything():
    inputs, labels, learner = torch.zeros(3, 64), torch.tensor([0, 1, 2]), tasks.DIGITS
    keys = [
        tasks._key(learner, inputs, labels, 0),
        tasks._key(learner, inputs, labels, 1),
        tasks._key(learner, inputs, labels.flip(0), 0),
        tasks._key(learner, inputs + 1, labels, 0),
        tasks._key(replace(learner, rate=0.02), inputs, labels, 0),
        tasks._key(replace(learner, epochs=1), inputs, labels, 0),
        tasks._key(replace(learner, build=tasks.SPIRALS.build), inputs, labels, 0),
        tasks._key(replace(learner, sources=(train,)), inputs, labels, 0),
    ]
    assert len(set(keys)) == len(keys)
    assert tasks._key(learner, inputs, labels, 0) == keys[0]


def test_a_stratified_order_has_each_class_in_proportion_from_the_start():
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 10)
    order = stratified_order(labels, 0)
    assert sorted(order.tolist()) == list(range(100))
    for n in range(1, 101):
        counts = torch.bincount(labels[order[:n]], minlength=3)
        assert (counts - torch.tensor([0.6, 0.3, 0.1]) * n).abs().max() <= 2
    assert not torch.equal(order, stratified_order(labels, 1))


def test_the_small_residual_network_adds_its_shortcuts():
    model = SmallResNet().eval()
    assert sum(isinstance(m, torch.nn.Conv2d) for m in model.modules()) == 9
    x = torch.randn(2, 16, 8, 8)
    block = model.stages[0]
    torch.nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(x), x.relu())
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("letters", "mlp", "symmetric", 0.3, 50, 0), "task is 'letters'"),
        (("digits", "bert", "symmetric", 0.3, 50, 0), "no architecture 'bert'"),
        (("texts", "bert", "instance", 0.3, 50, 0), "no noise 'instance'"),
        (("digits", "mlp", "symmetric", 0.3, 401, 0), "from 2 to 400"),
        (("cifar10", "vgg11_bn", "symmetric", 0.3, 100, 0), "is 0.25, not 0.3"),
        (("cifar10", "resnet", "human", 0.3, 100, 0), "is 0.172, not 0.3"),
        (("cifar10", "vgg11_bn", "symmetric", 0.25, 100, 1), "whose seed is 0, not 1"),
        (("cifar10", "resnet", "human", 0.172, 100, 9), "from 0 to 8, not 9"),
        (("cifar10", "vgg11_bn", "symmetric", 0.25, 100, 0), "needs the folder"),
    ],
)
def test_a_case_that_does_not_exist_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        case(*arguments)


@pytest.fixture
def few(monkeypatch, shared, tmp_path):
    """The shared folder with the first rows of each file only."""
    (tmp_path / "data").mkdir()
    (tmp_path / "networks").symlink_to(shared / "networks")
    for name, count in {"train": 400, "verified": 100, "pool": 60, "test": 40}.items():
        file = pyarrow.parquet.ParquetFile(shared / f"data/cifar10_{name}.parquet")
        pyarrow.parquet.write_table(file.read_row_group(0)[:count], tmp_path / f"data/cifar10_{name}.parquet")
    monkeypatch.setattr(tasks, "VGG_TRAINING", 80)
    monkeypatch.setattr(tasks, "RESNET_TRAINING", 150)
    return tmp_path


@pytest.mark.shared
def test_the_shared_network_comes_with_what_it_was_trained_on(few):
    found, unseen = case("cifar10", "vgg11_bn", "symmetric", 0.25, 130, 0, few)
    assert (len(found.verified), len(found.training), len(unseen)) == (130, 80, 40)
    assert case("cifar10", "vgg11_bn", "symmetric", 0.25, 50, 0, few)[0].verified.digests == found.verified.digests[:50]
    assert not digests(found.verified) & digests(unseen)
    assert not digests(found.training) & (digests(found.verified) | digests(unseen))
    rows = torch.randperm(400, generator=torch.Generator().manual_seed(0))[:80].sort().values
    assert torch.equal(found.truth, tasks._column(few / "data/cifar10_train.parquet", "label")[rows])
    assert 0.1 < realised(found.truth, found.training.labels, 10).wrong < 0.4
    with torch.no_grad(), counted(type(found.model)) as runs:
        right = (found.model(stacked(found.training)).argmax(1) == found.training.labels).double().mean()
    assert runs == [80]
    assert 0.7 < float(right) < 0.95  # 82% of all
    with pytest.raises(UsageError, match="no retraining"):
        found.train(found.truth)


@pytest.mark.shared
def test_a_residual_network_is_trained_on_human_labels(few):
    found, _ = case("cifar10", "resnet", "human", 0.172, 50, 0, few)
    given = tasks._column(few / "data/cifar10_train.parquet", "label_human_random1")[:150]
    assert torch.equal(found.training.labels, given)
    assert 0.1 < realised(found.truth, given, 10).wrong < 0.25
    assert abs(float(stacked(found.training).mean())) < 0.3  # normalised
    assert same_weights(found.train(given), found.model)


@pytest.mark.shared
def test_seeds_of_the_residual_network_share_neither_training_images_nor_the_order_of_verified_ones(few):
    (first, unseen), (second, same) = (case("cifar10", "resnet", "human", 0.172, 160, seed, few) for seed in (0, 1))
    column = tasks._column(few / "data/cifar10_train.parquet", "label_human_random1")
    assert torch.equal(second.training.labels, column[150:300])
    assert not digests(first.training) & digests(second.training)
    assert digests(first.verified) == digests(second.verified)
    assert first.verified.digests[:50] != second.verified.digests[:50]
    assert unseen.digest() == same.digest()
    names = tasks._column(few / "data/cifar10_verified.parquet", "label")
    assert torch.equal(first.verified.labels[:100], names)
    known = dict(zip(first.verified.digests, first.verified.labels.tolist(), strict=True))
    assert [known[digest] for digest in second.verified.digests] == second.verified.labels.tolist()
