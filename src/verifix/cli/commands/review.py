"""`verifix review`: the page on which people verify samples, and the corrections that it makes in the background."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from verifix.cli.commands.places import read_by
from verifix.cli.verifying_options import ReviewCommand
from verifix.errors import VerifixError, one_line, printable
from verifix.io.optional_imports import library
from verifix.progress import note
from verifix.review.ledger import Ledger
from verifix.review.looks import LOG, Looks
from verifix.review.pictures import open_shown
from verifix.selection.queue import Queue, read_queue
from verifix.storage.atomic import check_apart, file_digest
from verifix.storage.transaction import settle

SETTINGS = "settings.json"
"""The file in the folder of a background correction that has the settings of this command."""

CHECKED_EVERY = 1.0
"""Seconds between two looks at whether a correction is due or finished."""


@dataclass(frozen=True)
class Reviewed:
    """What a review ended with.

    Attributes
    ----------
    queue, out
        The samples, and the file of records.
    samples, decided, labelled, relabelled
        See `verifix.review.standing.Standing`.
    disputed
        On how many samples people disagree.
    """

    queue: str
    out: str
    samples: int
    decided: int
    labelled: int
    relabelled: int
    disputed: int


def run_review(command: ReviewCommand) -> tuple[int, Reviewed, str]:
    """Serve the page until it is interrupted; see `ReviewCommand`."""
    library("starlette", "starlette", "review")
    from verifix.review.app import application
    from verifix.review.desk import Desk
    from verifix.review.guard import Guard
    from verifix.review.serving import serve

    out = Path(command.queue).with_name("verified.jsonl") if command.out is None else Path(command.out)
    kept = out.with_suffix(".looks.jsonl")
    check_apart([out, kept], read_by(command))
    settle(out)
    queue = read_queue(command.queue)
    pictures = open_shown(queue.header, command.queue, command.pool)
    with Ledger(out, queue.header) as ledger:
        start = partial(_start, command) if command.model else None
        looks = Looks(kept, queue.header, _about(command, queue), start)
        desk = Desk(queue, pictures, ledger, looks)
        stopped = threading.Event()
        ticking = threading.Thread(target=_tick, args=(desk, stopped), daemon=True)
        ticking.start()
        try:
            serve(lambda port, token: Guard(application(desk), port, token), command.port, partial(_tell, out))
        finally:
            stopped.set()
            ticking.join()
            looks.close()
        found = desk.standing()
    reviewed = Reviewed(
        command.queue, str(out), disputed=len(found["disputed"]),
        **{name: found[name] for name in ("samples", "decided", "labelled", "relabelled")},
    )  # fmt: skip
    return 0, reviewed, _text(reviewed)


def _tell(out: Path, address: str) -> None:
    """Say where the page is, on stderr; results alone go to stdout."""
    sys.stderr.write(
        f"verifix: the page is ready at {address}\n"
        f"verifix: decisions are written to {printable(out, one_line=True)}; press Ctrl+C to end\n"
    )
    sys.stderr.flush()


def _tick(desk: Any, stopped: threading.Event) -> None:
    while not stopped.wait(CHECKED_EVERY):
        _go_on(desk)


def _go_on(desk: Any) -> None:
    """Let the corrections in the background go on; if that fails, people can verify all the same."""
    try:
        desk.tick()
    except (OSError, VerifixError) as error:
        note(f"no correction could be made in the background ({one_line(error)})")


def _about(command: ReviewCommand, queue: Queue) -> str:
    """Return a digest of what the corrections in the background are made with; those of others do not count."""
    weights = command.checkpoint
    content = file_digest(Path(weights)) if weights is not None and Path(weights).is_file() else weights
    apart = {"json", "config", "print_config", "out", "port", "progress", "queue", "checkpoint", "device", "pool"}
    settings = {name: value for name, value in asdict(command).items() if name not in apart}
    about = [queue.header.fingerprint, queue.header.random, content, settings]
    return hashlib.sha256(json.dumps(about, default=str).encode()).hexdigest()


def _start(command: ReviewCommand, folder: Path) -> subprocess.Popen[bytes]:
    """Start a process that makes a correction, leaves the processor to everything else, and ends with this one."""
    (folder / SETTINGS).write_text(json.dumps(asdict(command), default=str), encoding="utf-8")
    with (folder / LOG).open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - this interpreter, with a module and a folder of our own
            [sys.executable, "-m", "verifix.cli.look", str(folder)],
            stdin=subprocess.PIPE,  # nothing is written to it: it ends when this process does, however that is
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def _text(reviewed: Reviewed) -> str:
    lines = [
        f"{reviewed.decided} of {reviewed.samples} samples decided, {reviewed.labelled} with a label that counts, "
        f"{reviewed.relabelled} of them another than the given one."
    ]
    if reviewed.disputed:
        lines.append(f"People disagree on {reviewed.disputed} samples, which are left out until that is resolved.")
    lines.append(f"Records: {printable(reviewed.out, one_line=True)}")
    return "\n".join(lines)
