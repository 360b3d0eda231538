"""`verifix select`: which samples to verify next."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from verifix.cli.commands.common import check_names, device_wanted, open_checkpoint, open_model
from verifix.cli.commands.places import check_lines, check_there, read_by, written_by
from verifix.cli.verifying_options import SelectCommand
from verifix.errors import UsageError
from verifix.io.data.identity import absolute, folder_of, opening_of
from verifix.io.data.open import SETS, open_data
from verifix.io.data.preprocessing import prepare
from verifix.io.data.verified import is_verified
from verifix.model import ranks
from verifix.model.sources import ask_dataset
from verifix.progress import notes_kept
from verifix.selection.options import SelectOptions
from verifix.selection.queue import write_queue
from verifix.selection.select import SelectArguments, selected
from verifix.storage.atomic import check_apart, check_output


@dataclass(frozen=True)
class Selected:
    """What was selected.

    Attributes
    ----------
    out
        The queue.
    samples
        Of the data set.
    parts
        How many are to be verified, by part.
    strategy
        How the part was selected that is not random.
    random, probability
        Samples of the random part in all rounds, and the probability with which each came into it.
    notes
        What was noticed about samples and weights.
    """

    out: str
    samples: int
    parts: dict[str, int]
    strategy: str
    random: int
    probability: float | None
    notes: tuple[str, ...]


def run_select(command: SelectCommand) -> tuple[int, Selected, str]:
    """Select samples; see `SelectCommand`."""
    check_there(command)
    check_apart(written_by(command), read_by(command))
    check_lines(command.out)
    ranks.only_first(lambda: check_output(command.out, force=command.force))
    if is_verified(command.data):
        raise UsageError(f"{command.data} holds records on another data set; give that one with --data")
    checkpoint = open_checkpoint(command)
    model = open_model(command, checkpoint).to(device_wanted(command.device))
    preparation = prepare(model, command.model, command)
    with notes_kept() as notes:
        source = open_data(command.data, command, preparation, labelled=command.labels)
        check_names(model, source, preparation)
        settings = SelectArguments(**{field.name: getattr(command, field.name) for field in fields(SelectOptions)})
        found = selected(model, source, settings, folder_of(command.data, command.image_root))
    texts = ask_dataset(source.dataset, 0, "text") is not None
    names = preparation.class_names
    opening = opening_of(command, labels=command.labels, texts=texts, classes=names)
    queue = found.queue(absolute(command.data, SETS), names, opening)
    ranks.only_first(lambda: write_queue(queue, Path(command.out), force=command.force))
    header, parts = queue.header, dict(Counter(entry.part for entry in queue.entries))
    told = (header.length, parts, header.strategy, len(header.random), header.probability)
    result = Selected(command.out, *told, (*checkpoint.notes(model), *notes))
    return 0, result, "\n".join([*result.notes, found.summary(), f"Wrote {command.out}."])
