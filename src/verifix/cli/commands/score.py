"""`verifix score`: accuracy and cross-entropy of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from verifix.capture.input_statistics import NormInputs, put_together, watching_first_norm
from verifix.cli.commands.common import check_names, device_wanted, open_checkpoint, open_model
from verifix.cli.commands.places import check_there, read_by, written_by
from verifix.cli.options import ScoreCommand
from verifix.errors import DataError
from verifix.evaluation.accuracy import accuracy_of, remark_on_chance, remark_on_expected
from verifix.evaluation.input_check import settled
from verifix.evaluation.label_order import check_mapping
from verifix.io.data.open import open_data
from verifix.io.data.preparation import Preparation
from verifix.io.data.preprocessing import prepare
from verifix.io.data.subsample import limited
from verifix.losses import correct_or_not, cross_entropy, predicted_classes
from verifix.model import ranks
from verifix.model.borrow import borrowed
from verifix.model.outputs import understood
from verifix.model.predict import predict
from verifix.model.reading import read_in_parts
from verifix.model.samples import Samples, check_labels
from verifix.model.sources import DEFAULT_BATCH_SIZE
from verifix.model.tensors import device_of
from verifix.model.threads import threads_for
from verifix.model.work import work_of
from verifix.progress import notes_kept, progress_bar
from verifix.selection.score_files import begin_chunks, finish_chunks
from verifix.storage.atomic import check_apart
from verifix.storage.chunks import Arrays, Chunks


@dataclass(frozen=True)
class Score:
    """How good a checkpoint is.

    Attributes
    ----------
    samples
        How many it was measured on.
    accuracy
        Percent right.
    cross_entropy
        Mean, in nats.
    weights
        Which weights of the checkpoint were used.
    notes
        What was noticed about samples and weights.
    preprocessing
        How samples were prepared.
    """

    samples: int
    accuracy: float
    cross_entropy: float
    weights: str
    notes: tuple[str, ...]
    preprocessing: str


def run_score(command: ScoreCommand) -> tuple[int, Score, str]:
    """Score a checkpoint; see `ScoreCommand`."""
    check_there(command)
    check_apart(written_by(command), read_by(command))
    checkpoint = open_checkpoint(command)
    model = open_model(command, checkpoint).to(device_wanted(command.device))
    preparation, chunks = prepare(model, command.model, command), Chunks(command.scores)
    preparation = replace(preparation, sorted_names=True)
    with notes_kept() as data_notes:
        source = limited(open_data(command.data, command, preparation), command.limit, command.seed)
    preparation = check_names(model, source, preparation)
    begin_chunks(chunks, model, command, data=command.data, limit=command.limit, preprocessing=preparation.steps)
    with notes_kept() as noted_on_reading:
        reading = command.predicting_size, command.progress
        samples = read_in_parts(source, chunks, *reading, most=command.max_samples)
    samples, outputs = understood(model, samples, device_of(model), command.outputs)
    logits, seen = _run(model, samples, chunks, show=command.progress)
    check_labels(samples.labels, logits.shape[1], samples.where)
    classes, of = predicted_classes(logits), max(logits.shape[1], 2)
    unexpected = remark_on_expected(accuracy_of(classes, samples.labels), command.expected, "given")
    settled([seen.remark()], unexpected, source.prepared, None, "given", "omit --expect-accuracy")
    chance = remark_on_chance(classes, samples.labels, of, "given")
    remarks = [text for text in (outputs, _order(logits, samples, preparation), seen.remark(), chance) if text]
    score = Score(
        samples=len(samples),
        accuracy=100 * float(correct_or_not(logits, samples.labels).mean()),
        cross_entropy=float(cross_entropy(logits, samples.labels).mean()),
        weights=checkpoint.kind(model),
        notes=(*checkpoint.notes(model), *data_notes, *noted_on_reading, *remarks),
        preprocessing=source.prepared,
    )
    losses = cross_entropy(logits, samples.labels)
    finish_chunks(chunks, samples, {"predicted": classes, "cross_entropy": losses, "logits": logits})
    text = f"{score.accuracy:.2f}% of {score.samples} samples right, cross-entropy {score.cross_entropy:.4f}"
    return 0, score, "\n".join([*score.notes, f"Preprocessing of the samples: {score.preprocessing}.", text])


def _run(model: nn.Module, samples: Samples, chunks: Chunks, *, show: bool) -> tuple[Tensor, NormInputs]:
    """Return the logits of all samples ``[n, outputs]``, each process its part, and what the first BatchNorm saw."""
    device, size = device_of(model), samples.batch_size or DEFAULT_BATCH_SIZE
    parts = chunks.split(len(samples), size)
    sizes = [len(part) for part in parts]

    def run(part: range) -> Arrays:
        with watching_first_norm(model) as seen:
            logits = predict(model, samples, part, size, device)
        bar.update(len(part))
        return {"logits": logits.numpy(), **seen.sums()}

    with (
        borrowed(model),
        threads_for(partial(work_of, model, samples, device)),
        progress_bar("scoring", sum(map(len, ranks.mine(parts))), show) as bar,
    ):
        found = ranks.spread(chunks.through("logits", run), parts, sizes)
    return torch.cat([torch.from_numpy(part["logits"]) for part in found]), put_together(model, found)


def _order(logits: Tensor, samples: Samples, preparation: Preparation) -> str:
    """Say it if the predictions fit another order of the labels far better; a score of that is a score all the same."""
    try:
        check_mapping(logits, samples.labels, "given", preparation.class_names)
    except DataError as error:
        return f"{str(error).partition('; give class names')[0]}."
    return ""
