"""`verifix score`: accuracy and cross-entropy of a checkpoint."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from verifix.capture.input_statistics import watching_first_norm
from verifix.cli.commands.common import check_names, device_wanted, figures, logits_of, open_checkpoint, open_model
from verifix.cli.options import ScoreCommand
from verifix.errors import DataError
from verifix.evaluation.label_order import check_mapping
from verifix.io.data.open import open_data
from verifix.io.data.preprocessing import Preparation, prepare
from verifix.io.data.subsample import limited
from verifix.model.samples import Samples, read_samples


def run_score(command: ScoreCommand) -> tuple[int, dict[str, Any], str]:
    """Score a checkpoint; see `ScoreCommand`."""
    checkpoint = open_checkpoint(command)
    model = open_model(command.model, command.num_classes, checkpoint).to(device_wanted(command.device))
    preparation = prepare(model, command.model, command)
    source = limited(open_data(command.data, command, preparation), command.limit, command.seed)
    check_names(model, source, preparation)
    samples = read_samples(source, command.predicting_size, command.progress)
    with watching_first_norm(model) as seen:
        logits = logits_of(model, samples, command.progress, "scoring")
    result = figures(logits, samples.labels)
    remarks = [text for text in (_order(logits, samples, preparation), seen.remark()) if text]
    result |= {"weights": checkpoint.kind(model), "notes": [*checkpoint.notes(model), *remarks]}
    result["preprocessing"] = preparation.description
    text = (
        f"{result['accuracy']:.2f}% of {result['samples']} samples right, cross-entropy {result['cross_entropy']:.4f}"
    )
    text = "\n".join([*result["notes"], f"Samples are prepared so: {result['preprocessing']}.", text])
    return 0, result, text


def _order(logits: Tensor, samples: Samples, preparation: Preparation) -> str:
    """Say it if the predictions fit another order of the labels far better; a score of that is a score all the same."""
    try:
        check_mapping(logits, samples.labels, "given", preparation.class_names)
    except DataError as error:
        return f"{str(error).partition('; give class names')[0]}."
    return ""
