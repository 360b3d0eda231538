"""The commands: each reads, calls the library, writes, and says what it did."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

from verifix.cli.commands.compare import run_compare
from verifix.cli.commands.correct import run_correct
from verifix.cli.commands.inspect import run_inspect
from verifix.cli.commands.places import read_by
from verifix.cli.commands.score import run_score
from verifix.cli.commands.undo import run_undo
from verifix.cli.options import CompareCommand, CorrectCommand, DemoCommand, InspectCommand, ScoreCommand, UndoCommand
from verifix.model.threads import one_thread
from verifix.report.files import plain_data


def run(command: Any) -> int:
    """Run a command; whatever the user's own code prints goes to stderr.

    Parameters
    ----------
    command
        Its settings.

    Returns
    -------
    int
        The exit code.
    """
    runners: dict[type, Callable[[Any], tuple[int, Any, str]]] = {
        CorrectCommand: run_correct,
        ScoreCommand: run_score,
        CompareCommand: run_compare,
        InspectCommand: run_inspect,
        UndoCommand: run_undo,
        DemoCommand: run_demo,
    }
    with contextlib.redirect_stdout(sys.stderr), one_thread():
        code, result, text = runners[type(command)](command)
    if command.json:
        text = json.dumps(plain_data(result, "the result"), indent=2, allow_nan=False)
    sys.stdout.write(text + "\n")
    return code


def run_demo(command: DemoCommand) -> tuple[int, dict[str, Any], str]:
    """Run a demonstration; see `DemoCommand`."""
    from verifix.cli import demo

    inputs = read_by(command)
    result, text = demo.run(command.name, command.seed, command.seeds, command.out, inputs, force=command.force)
    return 0, result, text
