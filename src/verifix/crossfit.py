"""Cross-fitting: every verified sample is scored by a correction that was made without it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verifix.options import CorrectOptions
from verifix.progress import progress_bar
from verifix.samples import Samples
from verifix.scoring import Score, apply_score, correct_or_not, tempered_cross_entropy
from verifix.stages import Context, Stage
from verifix.strength import Candidates, Choice, Scores, Strength, choose


def choose_strength(
    stage: Stage,
    candidates: Candidates,
    parts: Sequence[Context],
    samples: Samples,
    options: CorrectOptions,
    score: Score | None,
    loss: Score | None,
) -> Choice:
    """Choose a stage's strength by cross-fitting: every sample is scored by a correction that never saw it."""

    def scores(logits: Tensor) -> Scores:
        losses = apply_score(loss or tempered_cross_entropy, logits, samples.labels, "loss", per_sample=True)
        values = apply_score(score or correct_or_not, logits, samples.labels, "score", per_sample=False)
        return Scores(losses, float(values.mean()), values if values.ndim else None)

    def cross_fitted(strengths: Sequence[Strength]) -> list[Scores]:
        return [scores(logits) for logits in cross_fit(stage, strengths, parts, len(samples), options.progress)]

    return choose(scores(_held_out(parts, len(samples))), cross_fitted, candidates)


def cross_fit(
    stage: Stage, strengths: Sequence[Strength], parts: Sequence[Context], count: int, show: bool
) -> list[Tensor]:
    """Return, per strength, the logits ``[n, outputs]`` of all samples, each from the fit that left it out."""
    results: list[list[tuple[list[int], Tensor]]] = [[] for _ in strengths]
    with progress_bar(f"strength of {stage.name}", len(parts) * len(strengths), show, unit="fit") as bar:
        for part in parts:
            held_out = _left_out(part, count)
            with part.fresh() as fresh:
                for i, strength in enumerate(strengths):
                    logits = part.predict(held_out, stage.fit(fresh, strength))
                    results[i].append((held_out, logits))
                    bar.update()
    return [_in_order(pieces) for pieces in results]


def _held_out(parts: Sequence[Context], count: int) -> Tensor:
    """Return the logits of all samples without this stage, each under the earlier stages that left it out."""
    subsets = [_left_out(part, count) for part in parts]
    return _in_order([(subset, part.predict(subset, {})) for subset, part in zip(subsets, parts, strict=True)])


def _in_order(pieces: Sequence[tuple[Sequence[int], Tensor]]) -> Tensor:
    """Put rows ``[n_i, outputs]`` of disjoint samples together in the order of the samples."""
    order = torch.tensor([i for indices, _ in pieces for i in indices])
    return torch.cat([rows for _, rows in pieces])[order.argsort()]


def _left_out(part: Context, count: int) -> list[int]:
    return sorted(set(range(count)) - set(part.indices))
