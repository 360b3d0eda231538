"""What the methods are compared on: networks that learned wrong labels, and the samples to correct and score them.

A seed decides everything: which samples are which, which labels are wrong, and the network's first weights. The
verified samples of a smaller size are the first ones of a larger size, and the unseen samples are the same for all
sizes, so sizes differ in nothing else. Training, verified and unseen samples share no input.

``digits``
    scikit-learn's digits: the 1,000 of the demo for training, a stratified order of 400 to verify, 397 unseen. The
    demo's MLP, or the small vision transformer of `benchmarks.texts_and_vit`.
``spirals``
    The demo's two spirals and its MLP: 250 points for training, 200 to verify, 2,000 unseen.
``texts``
    Docstrings and a small BERT, as in `benchmarks.texts_and_vit`: 2,400 for training, a stratified order of 400 to
    verify, 700 unseen; of texts that read the same once encoded, one is kept outside the training samples, and none
    that is among those.
``cifar10``
    Needs the folder of shared files. 1,000 verified images in the order of their file, and after them the pool, up to
    5,000; all 5,000 shuffled for another seed than 0. Unseen are those of the test file, for every seed, which is read
    for nothing else.
    ``vgg11_bn`` is the network that comes with the images, for 25% symmetric noise and seed 0 only. It was trained on
    45,000 images; `training` are 12,000 of them, drawn with the seed, to spare memory. It cannot be trained anew.
    ``resnet`` is a small residual network that is trained here on 5,000 training images, the first for seed 0, the next
    for seed 1, up to seed 8, for so long that it fits four of five wrong labels. On 10,000 images, in the same time, it
    fits one of ten: next to none to correct.

The two transformers need `benchmarks.coverage_models.declare_missing_operators` first, beside a CPU build of torch.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks import noise as noises
from benchmarks import texts_and_vit
from benchmarks.environment import installed
from benchmarks.methods.base import Case
from benchmarks.noise import Noise, noisy, realised
from benchmarks.small_resnet import SmallResNet
from benchmarks.texts_and_vit import Inputs, built, part
from verifix.cli.demo import digits, spiral
from verifix.cli.demo.training import mlp, train
from verifix.errors import UsageError
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.models import build_model
from verifix.io.options import DataOptions
from verifix.model.samples import Samples, read_samples
from verifix.model.tensors import tensor_bytes
from verifix.storage.atomic import write_atomically

IMAGES = DataOptions(mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))
"""How the shared network has its images."""

Pair = tuple[Inputs, Tensor]
Rates = Mapping[str, tuple[float, ...]]

VGG_TRAINING, RESNET_TRAINING = 12_000, 5000
RESNET_SEEDS = 9
"""How many times `RESNET_TRAINING` images there are, none twice."""

RATES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
FIXED: Rates = {"human": (0.172,)}
"""Noise that is not made here, and its share in the whole file."""


@dataclass(frozen=True)
class Learner:
    """How a network comes about.

    Attributes
    ----------
    build
        Seed → an untrained network.
    train
        Trains it: (model, inputs, labels, epochs, rate, batch, seed) → the same network in eval mode.
    epochs, rate, batch
        Passes, peak learning rate, batch size.
    sources
        The code that a trained network depends on, for the key of stored weights.
    """

    build: Callable[[int], nn.Module]
    train: Callable[..., nn.Module]
    epochs: int
    rate: float
    batch: int
    sources: tuple[Any, ...]

    def __call__(self, inputs: Inputs, labels: Tensor, seed: int) -> nn.Module:
        """Return a trained network."""
        model = self.build(seed)
        return self.train(model, inputs, labels, epochs=self.epochs, rate=self.rate, batch=self.batch, seed=seed)

    def recipe(self) -> str:
        """Return everything that decides how it is trained, besides samples and seed."""
        code = [inspect.getsource(source) for source in self.sources]
        packages = [f"{name} {installed(name)}" for name in ("torch", "torchvision", "transformers")]
        return repr((self.epochs, self.rate, self.batch, torch.get_num_threads(), packages, code))


@dataclass(frozen=True, eq=False)
class Data:
    """The samples of a task for one seed, before there is any noise, and how its network comes about.

    Attributes
    ----------
    training, verified, unseen
        Inputs and true labels of the three parts; the verified ones in the order in which sizes take them.
    learner
        How the network is trained; None if it is given.
    classes
        Number of classes.
    model
        The network, if it is given.
    pairs, groups
        Of asymmetric and hierarchical noise, as in `benchmarks.noise.noisy`.
    given
        Noise that is not made here → the labels of the training samples.
    """

    training: Pair
    verified: Pair
    unseen: Samples
    learner: Learner | None
    classes: int
    model: nn.Module | None = None
    pairs: Mapping[int, int] | None = None
    groups: Sequence[Sequence[int]] = ()
    given: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A row of `TASKS`.

    Attributes
    ----------
    load
        (architecture, seed, folder of shared files) → its samples.
    networks
        Each architecture: the noises it is trained with, and their rates. Others can be made, unless the noise is
        one that is given.
    sizes
        How many verified samples to compare at; the last is the most there are.
    shared
        Whether it needs the folder of shared files.
    """

    load: Callable[[str, int, Path], Data]
    networks: Mapping[str, Rates]
    sizes: tuple[int, ...]
    shared: bool = False


def case(
    task: str,
    architecture: str,
    noise: str,
    rate: float,
    verified: int,
    seed: int,
    shared: Path | None = None,
    cache: Path | None = None,
    learner: Learner | None = None,
) -> tuple[Case, Samples]:
    """Return a network to correct, and the samples to score it on.

    The network is trained once per process for each task, architecture, noise, rate and seed. What `Case.train`
    returns is always trained anew, so that the time a method takes is its own.

    Parameters
    ----------
    task, architecture, noise
        As in `TASKS`.
    rate
        How much noise; at 0 the network is trained on the true labels.
    verified
        How many verified samples.
    seed
        Of everything that is drawn.
    shared
        Folder with data and networks, for the tasks that need it.
    cache
        Folder for trained weights; what is there already is not trained again.
    learner
        How the network is trained, where that is not what `TASKS` says.

    Returns
    -------
    case : Case
        The network, and what there is to correct it with.
    unseen : Samples
        To score it on, and for nothing else.

    Raises
    ------
    UsageError
        If there is no such case.
    """
    check_case(task, architecture, noise, rate, verified, seed, shared)
    data = _data(task, architecture, seed, shared)
    data = data if learner is None else replace(data, learner=learner)
    model, training, truth = _trained(task, architecture, noise, rate, seed, shared, cache, learner)
    inputs, labels = data.verified
    first = torch.arange(verified)
    checked = torch.randperm(len(truth), generator=torch.Generator().manual_seed(seed))[:verified]
    return Case(
        model=model,
        verified=read_samples((part(inputs, first), labels[first])),
        training=training,
        truth=truth,
        checked=tuple(checked.tolist()),
        train=partial(_train, data, seed),
        classes=data.classes,
        seed=seed,
    ), data.unseen


def check_case(
    task: str, architecture: str, noise: str, rate: float, verified: int, seed: int, shared: Path | None
) -> None:
    """Refuse what does not exist; the arguments are those of `case`."""
    if task not in TASKS:
        raise UsageError(f"task is {task!r}; it must be one of {', '.join(TASKS)}")
    row = TASKS[task]
    if architecture not in row.networks:
        raise UsageError(f"{task} has no architecture {architecture!r}; it has {', '.join(row.networks)}")
    rates = row.networks[architecture]
    if noise not in rates:
        raise UsageError(f"{task} with {architecture} has no noise {noise!r}; it has {', '.join(rates)}")
    given = architecture == "vgg11_bn"
    if (given or noise in FIXED) and rate not in rates[noise]:
        raise UsageError(f"the rate of {noise} noise for {architecture} is {rates[noise][0]}, not {rate}")
    if given and seed != 0:
        raise UsageError(f"there is one {architecture}, whose seed is 0, not {seed}")
    if architecture == "resnet" and not 0 <= seed < RESNET_SEEDS:
        raise UsageError(
            f"{task} has images to train {architecture} with seeds from 0 to {RESNET_SEEDS - 1}, not {seed}"
        )
    if not 2 <= verified <= row.sizes[-1]:
        raise UsageError(f"{task} has from 2 to {row.sizes[-1]} verified samples, not {verified}")
    if row.shared and shared is None:
        raise UsageError(f"{task} needs the folder with data and networks")


@lru_cache(maxsize=4)
def _data(task: str, architecture: str, seed: int, shared: Path | None) -> Data:
    return TASKS[task].load(architecture, seed, shared or Path())


@lru_cache(maxsize=8)
def _trained(
    task: str,
    architecture: str,
    noise: str,
    rate: float,
    seed: int,
    shared: Path | None,
    cache: Path | None,
    learner: Learner | None,
) -> tuple[nn.Module, Samples, Tensor]:
    """Return the network, what it was trained on, and the true labels of that."""
    data = _data(task, architecture, seed, shared)
    data = data if learner is None else replace(data, learner=learner)
    given = _noise(data, noise, rate, seed).labels
    model = _stored(data, given, seed, cache) if data.model is None else data.model
    return model, read_samples((data.training[0], given)), data.training[1]


def _noise(data: Data, noise: str, rate: float, seed: int) -> Noise:
    inputs, labels = data.training
    if noise in data.given:
        return realised(labels, data.given[noise], data.classes)
    pixels = inputs if isinstance(inputs, Tensor) else None
    return noisy(noise, pixels, labels, rate, data.classes, seed, pairs=data.pairs, groups=data.groups)


def _train(data: Data, seed: int, labels: Tensor) -> nn.Module:
    if data.learner is None:
        raise UsageError("this network was given with its weights, and how it was trained is not here: no retraining")
    return data.learner(data.training[0], labels, seed)


def _stored(data: Data, labels: Tensor, seed: int, cache: Path | None) -> nn.Module:
    """Return the network trained on some labels: from the cache if its weights are there."""
    if cache is None or data.learner is None:
        return _train(data, seed, labels)
    path = cache / f"{_key(data.learner, data.training[0], labels, seed)}.safetensors"
    if path.exists():
        model = data.learner.build(seed)
        model.load_state_dict(load_file(path))
        return model.eval()
    model = _train(data, seed, labels)
    cache.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    write_atomically(path, lambda temporary: save_file(weights, temporary), force=True)
    return model


def _key(learner: Learner, inputs: Inputs, labels: Tensor, seed: int) -> str:
    """Return a name for weights: a hash of all that they depend on, the first weights included."""
    total = hashlib.sha256(repr((seed, learner.recipe())).encode())
    named = inputs if isinstance(inputs, dict) else {"": inputs}
    for name, tensor in sorted({**learner.build(seed).state_dict(), **named, " labels": labels}.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor_bytes(tensor))
    return total.hexdigest()


def stratified_order(labels: Tensor, seed: int) -> Tensor:
    """Shuffle samples so that the first ones, however many, have the classes in their proportions.

    Parameters
    ----------
    labels
        int64 ``[n]``.
    seed
        Seed.

    Returns
    -------
    Tensor
        Indices, int64 ``[n]``.
    """
    generator = np.random.default_rng(seed)
    place = np.empty(len(labels))
    for y in labels.unique():
        members = generator.permutation((labels == y).nonzero().flatten().numpy())
        place[members] = (np.arange(len(members)) + generator.random(len(members))) / len(members)
    return torch.from_numpy(place.argsort())


def _digits(architecture: str, seed: int, _: Path) -> Data:
    from sklearn.model_selection import train_test_split

    data = digits.load(seed)
    pictures = architecture == "vit"
    inputs = data.inputs.reshape(-1, 1, 8, 8).repeat(1, 3, 1, 1) if pictures else data.inputs
    rest = torch.cat([data.verified, data.unseen])
    parts = train_test_split(rest.numpy(), train_size=400, random_state=seed, stratify=data.labels[rest].numpy())
    pool, unseen = map(torch.from_numpy, parts)
    pool = pool[stratified_order(data.labels[pool], seed)]
    training, verified, test = ((inputs[i], data.labels[i]) for i in (data.training, pool, unseen))
    learner = VIT if pictures else DIGITS
    pairs, groups = noises.DIGIT_PAIRS, noises.DIGIT_GROUPS
    return Data(training, verified, read_samples(test), learner, 10, pairs=pairs, groups=groups)


def _spirals(_: str, seed: int, __: Path) -> Data:
    counts = spiral.TRAINING, spiral.VERIFIED, spiral.UNSEEN
    training, verified, unseen = (spiral.spirals(count, 3 * seed + i) for i, count in enumerate(counts))
    return Data(training, verified, read_samples(unseen), SPIRALS, 2, pairs={0: 1})


def _texts(_: str, seed: int, __: Path) -> Data:
    task = texts_and_vit.texts(seed)
    kept = _without_copies(task.inputs, task.training, torch.cat([task.verified, task.unseen]))
    pool, unseen = kept[:400], kept[400:1100]
    pool = pool[stratified_order(task.labels[pool], seed)]
    training, verified, test = ((part(task.inputs, i), task.labels[i]) for i in (task.training, pool, unseen))
    return Data(training, verified, read_samples(test), BERT, task.classes)


def _without_copies(inputs: Inputs, training: Tensor, rest: Tensor) -> Tensor:
    """Return those of `rest` that read like no training sample and like none before them."""
    ids = inputs["input_ids"] if isinstance(inputs, dict) else inputs
    seen = {ids[i].numpy().tobytes() for i in training}
    kept = []
    for i in rest.tolist():
        content = ids[i].numpy().tobytes()
        if content not in seen:
            kept.append(i)
        seen.add(content)
    return torch.tensor(kept)


def _cifar10(architecture: str, seed: int, shared: Path) -> Data:
    path = shared / "data/cifar10_train.parquet"
    images, labels = zip(
        *(_images(shared / f"data/cifar10_{name}.parquet") for name in ("verified", "pool")), strict=True
    )
    verified = torch.cat(images), torch.cat(labels)
    if seed != 0:
        order = torch.randperm(len(verified[1]), generator=torch.Generator().manual_seed(seed))
        verified = verified[0][order], verified[1][order]
    common: dict[str, Any] = {"pairs": noises.CIFAR10_PAIRS, "groups": noises.CIFAR10_GROUPS}
    test = _cifar10_test(shared)
    if architecture == "resnet":
        rows = RESNET_TRAINING * seed + torch.arange(RESNET_TRAINING)
        given = {"human": _column(path, "label_human_random1")[rows]}
        return Data(_images(path, rows), verified, test, RESNET, 10, given=given, **common)
    count = len(_column(path, "label"))
    rows = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:VGG_TRAINING].sort().values
    given = {"symmetric": _column(path, "label_sym25")[rows]}
    return Data(_images(path, rows), verified, test, None, 10, _vgg11_bn(shared), given=given, **common)


def cifar10_verified_and_pool(shared: Path) -> tuple[nn.Module, Samples, Samples]:
    """Return the network that comes with the images, the 1,000 verified ones, and the pool to score it on.

    Parameters
    ----------
    shared
        Folder with data and networks.

    Returns
    -------
    model : nn.Module
        In eval mode.
    verified, pool : Samples
        Neither has an image of the training or the test file.
    """
    verified, pool = (read_samples(_images(shared / f"data/cifar10_{name}.parquet")) for name in ("verified", "pool"))
    return _vgg11_bn(shared), verified, pool


def cifar10_to_select_from(shared: Path) -> tuple[Pair, Tensor, Samples]:
    """Return what the small ResNet can be corrected from, and what measures that; none of it is of the test file.

    Parameters
    ----------
    shared
        Folder with data.

    Returns
    -------
    pool : tuple
        The 4,000 images of the pool, with their true labels.
    given : Tensor
        The labels that one person gave each of them.
    unseen : Samples
        The training images of the last seed, with their true labels: no other seed is trained on them.
    """
    path, rows = shared / "data/cifar10_pool.parquet", RESNET_TRAINING * (RESNET_SEEDS - 1) + torch.arange(5000)
    unseen = read_samples(_images(shared / "data/cifar10_train.parquet", rows))
    return _images(path), _column(path, "label_human_random1"), unseen


@lru_cache(maxsize=1)
def _cifar10_test(shared: Path) -> Samples:
    return read_samples(_images(shared / "data/cifar10_test.parquet"))


def _images(path: Path, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Read images, normalised as the shared network has them, and their true labels; `rows` in increasing order."""
    labels = _column(path, "label")
    rows = torch.arange(len(labels)) if rows is None else rows
    batches = open_data(path, IMAGES).read(rows.tolist(), 500)
    return torch.cat([batch.inputs for batch in batches]), labels[rows]


def _column(path: Path, name: str) -> Tensor:
    import pyarrow.parquet

    return torch.tensor(pyarrow.parquet.read_table(path, columns=[name])[name].to_pylist())


class VGG(nn.Sequential):
    """The shared network as a class of its own, so that runs of it are told from runs of its blocks."""


def _vgg11_bn(shared: Path) -> nn.Module:
    model = build_model(f"py:{shared / 'networks/vgg11_bn_cifar.py'}:build", None)
    read_checkpoint(shared / "networks/vgg11_bn_cifar10_sym25.safetensors").load_into(model)
    named = VGG()
    for name, block in model.named_children():
        named.add_module(name, block)
    return named.eval()


def _mlp(widths: tuple[int, ...], seed: int) -> nn.Module:
    return mlp(widths, seed, norm=True)


DIGITS = Learner(partial(_mlp, (64, 256, 256, 10)), train, 60, 0.01, 50, (mlp, train))
SPIRALS = Learner(partial(_mlp, (2, 512, 512, 512, 2)), train, 400, 0.01, spiral.TRAINING, (mlp, train))
VIT = Learner(partial(built, texts_and_vit.vit), texts_and_vit.fit, 40, 1e-3, 32, (texts_and_vit,))
BERT = Learner(partial(built, texts_and_vit.bert), texts_and_vit.fit, 10, 1e-3, 32, (texts_and_vit,))
RESNET = Learner(partial(built, SmallResNet), train, 20, 0.01, 50, (inspect.getmodule(SmallResNet), built, train))

CLASS_KINDS: Rates = {"symmetric": RATES, "asymmetric": RATES[1:-1]}
ALL_KINDS: Rates = {**CLASS_KINDS, "hierarchical": RATES[1:], "instance": RATES[1:]}

TASKS: dict[str, Task] = {
    "digits": Task(_digits, {"mlp": ALL_KINDS, "vit": ALL_KINDS}, (50, 100, 200, 400)),
    "spirals": Task(
        _spirals, {"mlp": dict.fromkeys(("symmetric", "asymmetric", "instance"), RATES[:-1])}, (50, 100, 200)
    ),
    "texts": Task(_texts, {"bert": CLASS_KINDS}, (50, 100, 200, 400)),
    "cifar10": Task(
        _cifar10,
        {"vgg11_bn": {"symmetric": (0.25,)}, "resnet": {**ALL_KINDS, **FIXED}},
        (50, 100, 200, 500, 1000, 2000, 5000),
        shared=True,
    ),
}
"""What there is."""
