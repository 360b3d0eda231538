"""The commands: each reads, calls the library, writes, and says what it did."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from verifix.cli.commands.compare import run_compare
from verifix.cli.commands.correct import run_correct
from verifix.cli.commands.exchange import run_export, run_import
from verifix.cli.commands.inspect import run_inspect
from verifix.cli.commands.places import read_by
from verifix.cli.commands.review import run_review
from verifix.cli.commands.score import run_score
from verifix.cli.commands.select import run_select
from verifix.cli.commands.undo import run_undo
from verifix.cli.options import CompareCommand, CorrectCommand, DemoCommand, InspectCommand, ScoreCommand, UndoCommand
from verifix.cli.streams import diverted
from verifix.cli.verifying_options import ExportCommand, ImportCommand, ReviewCommand, SelectCommand
from verifix.errors import printable
from verifix.io.models import neighbours
from verifix.model.threads import one_thread
from verifix.report.files import plain_data


def run(command: Any, *, for_good: bool = False) -> int:
    """Run a command; whatever the user's own code prints goes to stderr.

    Parameters
    ----------
    command
        Its settings.
    for_good
        Whether nothing but the result may ever reach stdout, because the process ends afterwards.

    Returns
    -------
    int
        The exit code.
    """
    runners: dict[type, Callable[[Any], tuple[int, Any, str]]] = {
        CorrectCommand: run_correct,
        SelectCommand: run_select,
        ImportCommand: run_import,
        ExportCommand: run_export,
        ScoreCommand: run_score,
        CompareCommand: run_compare,
        InspectCommand: run_inspect,
        UndoCommand: run_undo,
        ReviewCommand: run_review,
        DemoCommand: run_demo,
    }
    with diverted(for_good=for_good) as say:
        with one_thread(), neighbours():
            code, result, text = runners[type(command)](command)
        if command.json:
            text = json.dumps(plain_data(result, "the result"), indent=2, allow_nan=False)
        say(f"{printable(text)}\n")
    return code


def run_demo(command: DemoCommand) -> tuple[int, dict[str, Any], str]:
    """Run a demonstration; see `DemoCommand`."""
    from verifix.cli import demo

    inputs = read_by(command)
    result, text = demo.run(command.name, command.seed, command.seeds, command.out, inputs, force=command.force)
    return 0, result, text
