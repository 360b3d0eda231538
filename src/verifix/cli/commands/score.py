"""`verifix score`: accuracy and cross-entropy of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from verifix.capture.input_statistics import watching_first_norm
from verifix.cli.commands.common import check_names, device_wanted, logits_of, open_checkpoint, open_model
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
from verifix.model.samples import Samples, read_samples
from verifix.progress import notes_kept


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
    checkpoint = open_checkpoint(command)
    model = open_model(command, checkpoint).to(device_wanted(command.device))
    preparation = prepare(model, command.model, command)
    with notes_kept() as data_notes:
        source = limited(open_data(command.data, command, preparation), command.limit, command.seed)
    check_names(model, source, preparation)
    with notes_kept() as noted_on_reading:
        samples = read_samples(source, command.predicting_size, command.progress, most=command.max_samples)
    with watching_first_norm(model) as seen:
        logits, outputs = logits_of(model, samples, command, "scoring")
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
    text = f"{score.accuracy:.2f}% of {score.samples} samples right, cross-entropy {score.cross_entropy:.4f}"
    return 0, score, "\n".join([*score.notes, f"Preprocessing of the samples: {score.preprocessing}.", text])


def _order(logits: Tensor, samples: Samples, preparation: Preparation) -> str:
    """Say it if the predictions fit another order of the labels far better; a score of that is a score all the same."""
    try:
        check_mapping(logits, samples.labels, "given", preparation.class_names)
    except DataError as error:
        return f"{str(error).partition('; give class names')[0]}."
    return ""
