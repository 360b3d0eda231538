"""COLUR: Sui et al., "COLUR: confidence-oriented learning, unlearning and relearning", IJCAI 2025 (arXiv 2506.19496).

Two networks correct each other on training inputs, whose given labels are not used. The worker is the network to be
corrected. An iteration has three parts, by how sure both are of their answers together, √(p_worker p_teacher):

1. *Unlearn.* Where they disagree and are sure, the worker's loss on its own answer, smoothed by the share of such
   inputs among all disagreements, is raised.
2. *Relearn.* Inputs that they are not sure of get a mixture of both answers, sharpened, and are mixed with inputs that
   they agree on and are sure of (mixup). Both networks learn these.
3. *Refine.* Both learn what they agree on and are sure of, with smoothed labels.

Sure is √(…) ≥ 0.75, and of agreements at least the surest 30%.

What differs: the paper's teacher is the model as it was before it saw any noise, which there is none of here; the
teacher is the network fine-tuned on the verified labels. Verified labels are part of every batch of parts 2 and 3, with
the same weight. Optimizers are Adam in eval mode, and SGD with momentum and cut gradients for part 1, whose rate is
relative to Adam's. At most 2,000 inputs are drawn for an iteration. Inputs that are no numbers, such as tokens, are
learned without mixing. The temperature and mixup's α are MixMatch's (arXiv 1905.02249).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.methods.semi import OTHERS, RATES, SemiSupervised, answers, at, both
from benchmarks.methods.semi import soft_cross_entropy as soft
from benchmarks.methods.steps import Steps, adam, momentum, trained
from verifix.recipe.candidates import Listed
from verifix.recipe.stages.training import Training

SURE, SUREST = 0.75, 0.3
"""How sure both have to be, and the share of agreements that is taken for sure in any case."""

ANSWERS, MIXUP = 1.2, 0.75
"""The Beta distributions of mixed answers and of mixed inputs."""

TEMPERATURE, SMOOTHING = 0.5, 0.1

DRAWN = 2000
"""Training inputs of an iteration, at most."""

ITERATIONS = (1, 4)
MOST_SEEN = 100_800
"""Samples that the longest training may see, as in `benchmarks.methods.semi`."""

UNLEARNING = (0.1, 1.0)
"""Rates of part 1, relative to Adam's."""


class Colur(SemiSupervised):
    """Two networks that unlearn and relearn; its strength is (rate, relative rate of unlearning, iterations)."""

    name = "colur"

    def candidates(self) -> Listed:
        """Return every rate with both rates of unlearning, and few and more iterations."""
        return Listed(tuple(itertools.product(RATES, UNLEARNING, map(float, ITERATIONS))))

    def longest(self) -> int:
        """Return the most iterations: each sees its inputs up to twice, by two networks."""
        return max(ITERATIONS[-1], MOST_SEEN // (4 * min(DRAWN, len(self.case.training))))

    def training(self, *settings: float) -> Training:
        """Begin a training.

        Parameters
        ----------
        *settings
            Rate, and that of unlearning relative to it.

        Returns
        -------
        Training
            An iteration is its unit.
        """
        rate, unlearning = settings
        context, samples = self.context, self.case.training
        worker, teacher = (Steps(context, adam(context, rate)) for _ in range(2))
        teacher.weights.update({name: weight.clone() for name, weight in self.taught(rate).items()})
        teacher.optimizer = adam(context, rate)(list(teacher.weights.values()))
        away = momentum(rate * unlearning)(list(worker.weights.values()))
        generator = worker.generator

        def iteration(_: int) -> None:
            drawn = torch.randperm(len(samples), generator=generator)[:DRAWN]
            said = [answers(context, samples, drawn.tolist(), steps.weights) for steps in (worker, teacher)]
            parts = Parts.of(*said)
            inputs = at(self.pool, drawn)
            _unlearn(worker, away, inputs, parts, said[0])
            sure = F.one_hot(parts.answer[parts.agreed], self.case.classes).double()
            agreed = at(inputs, parts.agreed), smoothed(sure, SMOOTHING)
            for steps in (worker, teacher):
                others = relearned(inputs, said, parts, generator)
                for data in (others, agreed):
                    steps.over(self.beside_verified(generator, _batches(*data, generator)), both)

        return Training(trained(worker, iteration))


@dataclass(frozen=True)
class Parts:
    """Which inputs are unlearned, relearned and refined.

    Attributes
    ----------
    apart
        They disagree, and are sure: indices, int64.
    unsure
        They are not.
    agreed
        They agree, and are sure.
    answer
        The teacher's answer to each input ``[n]``.
    share
        Of `apart` among all disagreements.
    """

    apart: Tensor
    unsure: Tensor
    agreed: Tensor
    answer: Tensor
    share: float

    @classmethod
    def of(cls, worker: Tensor, teacher: Tensor) -> Parts:
        """Sort inputs by the probabilities ``[n, classes]`` that both networks give."""
        (sure, own), (surer, answer) = worker.max(dim=1), teacher.max(dim=1)
        together = (sure * surer).sqrt()
        agree, known = own == answer, together >= SURE
        if agree.any():
            most = agree.nonzero().flatten()
            count = round(SUREST * len(most))
            known[most[together[most].topk(count).indices]] = True
        apart, agreed = known & ~agree, known & agree
        share = float(apart.sum()) / max(int((~agree).sum()), 1)
        first, unsure, last = (mask.nonzero().flatten() for mask in (apart, ~known, agreed))
        return cls(first, unsure, last, answer, share)


def _unlearn(worker: Steps, away: torch.optim.Optimizer, inputs: Any, parts: Parts, said: Tensor) -> None:
    """Raise the worker's loss on its sure answers where the teacher is sure of another."""
    own = F.one_hot(said[parts.apart].argmax(dim=1), said.shape[1]).double()
    data = at(inputs, parts.apart), smoothed(own, parts.share)
    towards, worker.optimizer = worker.optimizer, away
    worker.over(_batches(*data, worker.generator), lambda logits, targets: -soft(logits, targets).mean())
    worker.optimizer = towards


def relearned(inputs: Any, said: Sequence[Tensor], parts: Parts, generator: torch.Generator) -> tuple[Any, Tensor]:
    """Return inputs that the networks are not sure of, mixed with some that they are sure of, and the targets.

    Parameters
    ----------
    inputs
        All inputs.
    said
        The probabilities ``[n, classes]`` that both networks give.
    parts
        Which inputs are which.
    generator
        Where chance comes from.

    Returns
    -------
    inputs : object
        As many as the larger of both kinds has; where they cannot be mixed, those that they are not sure of.
    targets : Tensor
        ``[n, classes]``.
    """
    worker, teacher = (probability[parts.unsure] for probability in said)
    share = _beta(ANSWERS, len(parts.unsure), generator)[:, None]
    x, targets = at(inputs, parts.unsure), sharpened(share * teacher + (1 - share) * worker)
    if not (isinstance(x, Tensor) and x.is_floating_point() and len(parts.unsure) and len(parts.agreed)):
        return x, targets
    other = at(inputs, parts.agreed), sharpened((said[0][parts.agreed] + said[1][parts.agreed]) / 2)
    (x, targets), (z, more) = sorted([(x, targets), other], key=lambda pair: -len(pair[1]))
    partner = torch.randint(0, len(more), (len(x),), generator=generator)
    share = _beta(MIXUP, len(x), generator)
    wide = share.reshape(-1, *[1] * (x.ndim - 1)).to(x)
    mixed = wide * x + (1 - wide) * z[partner]
    return mixed, share[:, None] * targets + (1 - share[:, None]) * more[partner]


def sharpened(probability: Tensor) -> Tensor:
    """Return p^(1/T), normalised, ``[n, classes]``."""
    sharp = probability ** (1 / TEMPERATURE)
    return sharp / sharp.sum(dim=1, keepdim=True)


def smoothed(targets: Tensor, share: float) -> Tensor:
    """Return targets ``[n, classes]`` of which a share is spread over all classes."""
    return (1 - share) * targets + share / targets.shape[1]


def _beta(alpha: float, count: int, generator: torch.Generator) -> Tensor:
    """Draw from Beta(α, α), float64 ``[count]``."""
    concentration = torch.full((2, count), alpha, dtype=torch.float64)
    gamma = torch._standard_gamma(concentration, generator=generator)  # the public distributions take no generator
    return gamma[0] / gamma.sum(dim=0)


def _batches(inputs: Any, targets: Tensor, generator: torch.Generator) -> Iterator[tuple[Any, Tensor]]:
    """Yield inputs and targets once, in random order."""
    count = len(targets)
    for drawn in torch.randperm(count, generator=generator).split(OTHERS) if count else ():
        yield at(inputs, drawn), targets[drawn]
