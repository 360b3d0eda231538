"""`verifix score`: accuracy and cross-entropy of a checkpoint."""

from __future__ import annotations

from typing import Any

from verifix.commands.common import accuracy, check_names, device_wanted, open_checkpoint, open_model
from verifix.io.datasets import open_data
from verifix.io.limit import limited
from verifix.io.preprocessing import prepare
from verifix.options import ScoreCommand
from verifix.samples import read_samples


def run_score(command: ScoreCommand) -> tuple[int, dict[str, Any], str]:
    """Score a checkpoint; see `ScoreCommand`."""
    checkpoint = open_checkpoint(command)
    model = open_model(command.model, command.num_classes, checkpoint).to(device_wanted(command.device))
    preparation = prepare(model, command.model, command)
    source = limited(open_data(command.data, command, preparation), command.limit, command.seed)
    check_names(model, source, preparation)
    samples = read_samples(source, command.batch_size, command.progress)
    result = accuracy(model, samples, command.progress, "scoring")
    result |= {"weights": checkpoint.kind(model), "notes": checkpoint.notes(model)}
    result["preprocessing"] = preparation.description
    text = (
        f"{result['accuracy']:.2f}% of {result['samples']} samples right, cross-entropy {result['cross_entropy']:.4f}"
    )
    text = "\n".join([*result["notes"], f"Samples are prepared so: {result['preprocessing']}.", text])
    return 0, result, text
