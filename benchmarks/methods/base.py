"""What every method gets, what it gives back, and how its settings are chosen: the same for all of them.

A method is made like a stage of the library (`verifix.recipe.stages.base.Stage`): one class, whose instance is the
method at work in one context, and sees its samples and nothing else. Its strength is a tuple of settings. What it gives
back is new weights, or, where it leaves the network's form, a function that predicts.

How settings are chosen. A coarse list is scored on folds of the verified samples; then the neighbours of the best, for
as long as one of them is better, at most `ROUNDS` times, so that a list that ends too early costs a rival little. "No
change" is scored with them. The lowest loss on held-out samples wins, as in the tool.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from verifix.algorithm import correct
from verifix.capture.collect import collect
from verifix.capture.padding import Padding
from verifix.capture.selection import selection_of
from verifix.losses import correct_or_not, tempered_cross_entropy
from verifix.model.answers import predicted
from verifix.model.borrow import borrowed
from verifix.model.clone import copy_model
from verifix.model.folds import split_folds
from verifix.model.samples import Samples
from verifix.model.sources import DEFAULT_BATCH_SIZE
from verifix.model.tensors import device_of
from verifix.model.weights import Update, weights_replaced
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context, Run

FOLDS = 5

ROUNDS = 4
"""How often neighbours of the best settings are tried, at most."""

NO_CHANGE = "no change"
"""The setting that leaves the network as it is."""

HALF_A_DECADE = math.sqrt(10)

Predictor = Callable[[Samples, Sequence[int]], Tensor]
"""(samples, indices) → logits ``[n, classes]``, float64 on the CPU."""

Fitted = Update | Predictor


@dataclass(frozen=True, eq=False)
class Case:
    """One network to correct, and what there is to do it with.

    Attributes
    ----------
    model
        The network, trained on wrong labels, in eval mode; not to be changed.
    verified
        Samples that it has not seen, with verified labels.
    training
        What it was trained on, with the labels that it was given.
    truth
        The true labels of `training`, int64 ``[n]``: for the upper bound, and to know which of `checked` are wrong.
    checked
        Indices of as many training samples as there are verified ones, drawn at random, whose labels a person checked
        as well: for the methods that want to know samples with wrong labels.
    train
        Labels ``[n]`` of `training` → a network trained the way this one was.
    classes
        Number of classes.
    seed
        Seed of whatever a method draws.
    """

    model: nn.Module
    verified: Samples
    training: Samples
    truth: Tensor
    checked: tuple[int, ...]
    train: Callable[[Tensor], nn.Module]
    classes: int
    seed: int = 0

    @property
    def known_wrong(self) -> list[int]:
        """Checked training samples whose label turned out to be wrong."""
        return [i for i in self.checked if self.training.labels[i] != self.truth[i]]


class Rival(ABC):
    """A method at work in one context; its strength is a tuple of settings, and it may leave the network's form.

    Parameters
    ----------
    case
        The network and what there is to correct it with.
    context
        The verified samples to fit on.

    Attributes
    ----------
    settled
        What the last fit has chosen by itself, other than by folds; None if nothing.
    """

    name = ""
    settled: Any = None

    def __init__(self, case: Case, context: Context) -> None:
        self.case, self.context = case, context

    @classmethod
    @contextmanager
    def open(cls, case: Case) -> Iterator[Callable[[Context], Rival]]:
        """Lend what puts the method to work in contexts; what these have in common may live until the end.

        Yields
        ------
        callable
            Context → the method there.
        """
        yield partial(cls, case)

    def obstacle(self) -> str:
        """Say what keeps it from running here; empty if nothing does."""
        return ""

    @abstractmethod
    def candidates(self) -> Listed:
        """Return the settings to begin with: 8 or more, unless there is nothing to set."""

    def neighbours(self, best: Any) -> Sequence[Any]:  # noqa: ARG002
        """Return the settings next to the best so far, in an order in which they can be fitted; none by default."""
        return ()

    @abstractmethod
    def fit(self, strength: Any) -> Fitted:
        """Return new weights, or what predicts, fitted on the context's samples."""

    def release(self) -> None:  # noqa: B027 - most keep nothing large
        """Let go of what is large; called after each round of settings."""

    @contextmanager
    def round(self) -> Iterator[None]:
        """Fit some settings, and let go of what they shared at the end."""
        try:
            yield
        finally:
            self.release()


@dataclass(frozen=True)
class Setting:
    """Settings that were tried, and what they reached on the folds that they did not see: percent right, and loss."""

    strength: tuple[float, ...] | str
    accuracy: float
    loss: float


@dataclass(frozen=True, eq=False)
class Answer:
    """What a method made of a case.

    Attributes
    ----------
    predict
        (samples, indices) → logits.
    chosen
        Its settings, or by stage; `NO_CHANGE` if no settings were better than that; None if there is nothing to set.
    tried
        All that were tried on folds, `NO_CHANGE` first; empty if there was nothing to choose.
    obstacle
        Why it could not run; empty if it did.
    seconds
        Wall-clock time, choosing included.
    runs
        Samples × passes: each sample that the network was run on, a backward pass counted as two.
    """

    predict: Predictor
    chosen: Any = None
    tried: tuple[Setting, ...] = ()
    obstacle: str = ""
    seconds: float = 0.0
    runs: int = 0


def contexts(case: Case, model: nn.Module, folds: int = FOLDS) -> tuple[Context, list[Context]]:
    """Return the context of all verified samples, and for each fold that of all others.

    Parameters
    ----------
    case
        The case.
    model
        A copy of its network, borrowed.
    folds
        How many folds.

    Returns
    -------
    whole : Context
        All verified samples.
    parts : list of Context
        All but one fold each; the folds are those of `verifix.correct` with the same seed.
    """
    samples, device, selection = case.verified, device_of(model), selection_of(None, None)
    members = [list(map(int, fold)) for fold in split_folds(samples, folds, case.seed)]
    few = [range(min(2, len(samples)))]  # layers and biases; no moments
    padding = Padding(required=False)
    found = collect(model, samples, few, batch_size=2, device=device, selection=selection, padding=padding)
    size = samples.batch_size or DEFAULT_BATCH_SIZE
    numbers = range(folds)
    run = Run(model, samples, members, found, {}, size, device, selection, padding, seed=case.seed)
    whole = Context(run, numbers)
    return whole, [whole.without(fold) for fold in numbers]


def tuned(method: type[Rival], case: Case, model: nn.Module) -> Answer:
    """Choose a method's settings on the folds of the verified samples, and fit it with them on all.

    Of all settings, "no change" among them, the one with the least loss on held-out samples is taken, at its best
    temperature.

    Parameters
    ----------
    method
        The method.
    case
        The network and the samples.
    model
        A copy of the network to work on, borrowed.

    Returns
    -------
    Answer
        What it made of them.
    """
    with torch.inference_mode(False), torch.no_grad(), method.open(case) as prepare:
        all_samples, without = contexts(case, model)
        whole = prepare(all_samples)
        obstacle = whole.obstacle()
        if obstacle:
            return Answer(predictor(model, {}), obstacle=obstacle)
        first = whole.candidates().strengths
        tried: list[Setting] = []
        if len(first) > 1:
            tried = _searched(whole, first, partial(_tried, case, model, [prepare(part) for part in without]))
        best = _best(tried).strength if tried else first[0]
        with whole.round():
            fitted = {} if best == NO_CHANGE else whole.fit(best)
    return Answer(predictor(model, fitted), chosen=best or whole.settled, tried=tuple(tried))


def _best(tried: Sequence[Setting]) -> Setting:
    return min(tried, key=lambda setting: setting.loss)


def _searched(whole: Rival, first: Sequence[Any], score: Callable[[Sequence[Any]], list[Setting]]) -> list[Setting]:
    """Score no change and the first settings, and then neighbours of the best ones until none is better."""
    tried = score([NO_CHANGE, *first])
    for _ in range(ROUNDS):
        known = {setting.strength for setting in tried}
        around = [near for near in whole.neighbours(_best(tried[1:]).strength) if near not in known]
        if not around:
            break
        tried += score(around)
    return tried


def nearby(
    value: float, factor: float, lowest: float = 0.0, highest: float = math.inf, *, whole: bool = False
) -> list[float]:
    """Return the numbers next to a setting, on either side.

    Parameters
    ----------
    value
        The setting.
    factor
        Between neighbours, above 1.
    lowest, highest
        Bounds; beyond them there are none.
    whole
        Whether settings are whole numbers; others are rounded to two digits, so that steps forth and back meet.

    Returns
    -------
    list of float
        None, one or two, in ascending order.
    """
    steps = (value / factor, value * factor)
    found = [float(round(step)) if whole else float(f"{step:.2g}") for step in steps]
    return [step for step in found if lowest <= step <= highest and step != value]


def _tried(case: Case, model: nn.Module, parts: Sequence[Rival], strengths: Sequence[Any]) -> list[Setting]:
    """Score settings: each fold is predicted by fits that have not seen it."""
    count = len(case.verified)
    logits = torch.empty(len(strengths), count, case.classes, dtype=torch.float64)
    for part in parts:
        held_out = part.context.outside
        with part.round():
            for i, strength in enumerate(strengths):
                fitted = {} if strength == NO_CHANGE else part.fit(strength)
                logits[i, held_out] = predictor(model, fitted)(case.verified, held_out)
    labels = case.verified.labels
    return [
        Setting(
            strength,
            100 * float(correct_or_not(found, labels).mean()),
            float(tempered_cross_entropy(found, labels).mean()),
        )
        for strength, found in zip(strengths, logits, strict=True)
    ]


def predictor(model: nn.Module, fitted: Fitted) -> Predictor:
    """Return what predicts: the model under new weights, or the function itself.

    Parameters
    ----------
    model
        The network, borrowed.
    fitted
        New weights, or a function.

    Returns
    -------
    callable
        (samples, indices) → logits.
    """
    if callable(fitted):
        return fitted

    def predict(samples: Samples, indices: Sequence[int]) -> Tensor:
        with weights_replaced(model, fitted):
            return predicted(model, samples, indices)

    return predict


@dataclass(frozen=True)
class Tool:
    """The tool itself.

    Attributes
    ----------
    recipe
        Its recipe.
    unlabelled
        Whether it gets the inputs of the training samples.
    noisy
        Whether it gets the training samples with the labels that they were given.
    """

    recipe: str
    unlabelled: bool = False
    noisy: bool = False

    def arguments(self, case: Case) -> dict[str, Any]:
        """Return what it is called with, besides the network and the verified samples."""
        found: dict[str, Any] = {"recipe": self.recipe, "seed": case.seed, "progress": False}
        if self.unlabelled or self.noisy:
            (batch,) = case.training.batches(range(len(case.training)), len(case.training))
            found |= {"unlabelled": batch.inputs} if self.unlabelled else {}
            found |= {"noisy": (batch.inputs, case.training.labels)} if self.noisy else {}
        return found


def by_verifix(tool: Tool, case: Case) -> Answer:
    """Correct with the tool itself, as a user would call it.

    Parameters
    ----------
    tool
        Its recipe, and what it gets.
    case
        The network and the samples.

    Returns
    -------
    Answer
        What it made of them.
    """
    correction = correct(case.model, case.verified, **tool.arguments(case))
    return Answer(predictor(correction.model, {}), chosen=correction.strengths)


def answered(make: type[Rival] | Tool, case: Case) -> Answer:
    """Let a method correct a case, and measure what it takes.

    Parameters
    ----------
    make
        The method; or the tool.
    case
        The network and the samples.

    Returns
    -------
    Answer
        What it made of them, with seconds and samples × passes.
    """
    start = time.perf_counter()
    with counted(type(case.model)) as runs:
        if isinstance(make, Tool):
            answer = by_verifix(make, case)
        else:
            model = copy_model(case.model)
            with borrowed(model):
                answer = tuned(make, case, model)
    return replace(answer, seconds=time.perf_counter() - start, runs=runs[0])


class counted:  # noqa: N801 - used like a function
    """Count the samples that networks of one class are run on; a pass that gradients flow through counts three times.

    Parameters
    ----------
    kind
        The class of the network.
    """

    def __init__(self, kind: type[nn.Module]) -> None:
        self.kind = kind
        self.runs = [0]

    def __enter__(self) -> list[int]:
        """Begin to count."""
        self.handle = nn.modules.module.register_module_forward_hook(self._count)
        return self.runs

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.handle.remove()

    def _count(self, module: nn.Module, _: Any, output: Any) -> None:
        logits = getattr(output, "logits", output)
        if type(module) is self.kind and isinstance(logits, Tensor):
            self.runs[0] += len(logits) * (3 if logits.requires_grad else 1)
