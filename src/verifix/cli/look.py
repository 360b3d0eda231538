"""One correction in the background of `verifix review`, a process of its own: ``python -m verifix.cli.look FOLDER``."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from verifix.errors import VerifixError, printable
from verifix.model.threads import wait_passively

COURTESY = 10
"""How far the process stands back: the page, and whoever uses the machine, come first."""

TAKEN_OVER = ("recipe", "alpha", "budget", "seed", "batch_size", "outputs", "include", "exclude", "padding")
"""Settings of the command that are settings of the correction."""


def main(folder: str) -> int:
    """Make a correction from the labels in a folder, and write what it predicts for other samples.

    Parameters
    ----------
    folder
        Where `verifix.review.looks` has left the job, the labels and the settings.

    Returns
    -------
    int
        Exit code.
    """
    threading.Thread(target=_end_with_the_page, args=(folder,), daemon=True).start()
    wait_passively()
    with suppress(OSError, AttributeError):  # Windows has no such call
        os.nice(COURTESY)
    try:
        look(Path(folder))
    except VerifixError as error:
        sys.stderr.write(f"verifix: error: {printable(error, one_line=True)}\n")
        return error.exit_code
    return 0


def _end_with_the_page(folder: str) -> None:
    """Wait for the end of standard input, which the page holds open as long as it lives; then leave nothing behind."""
    while sys.stdin.buffer.read(1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


def look(folder: Path) -> None:
    """Make the correction; see `main`."""
    from verifix.algorithm import correct
    from verifix.cli.commands.common import check_names, device_wanted, open_model
    from verifix.cli.commands.review import SETTINGS
    from verifix.cli.verifying_options import ReviewCommand
    from verifix.io.checkpoints.read import read_checkpoint
    from verifix.io.data.open import open_data
    from verifix.io.data.preprocessing import prepare
    from verifix.io.data.verified import Verified
    from verifix.io.models import neighbours, own_checkpoint
    from verifix.losses import predicted_classes
    from verifix.model.answers import predicted
    from verifix.model.outputs import understood
    from verifix.model.samples import apart_from, read_samples
    from verifix.model.tensors import device_of
    from verifix.model.threads import one_thread
    from verifix.review.looks import FOUND, JOB, TRAIN, Look
    from verifix.storage.atomic import write_atomically

    began = time.perf_counter()
    job = json.loads((folder / JOB).read_text("utf-8"))
    command = ReviewCommand(**json.loads((folder / SETTINGS).read_text("utf-8")))
    with one_thread(), neighbours():
        checkpoint = read_checkpoint(command.checkpoint or own_checkpoint(command.model), command.weights)
        model = open_model(command, checkpoint).to(device_wanted(command.device))
        preparation = prepare(model, command.model, command)
        source = open_data(folder / TRAIN, command, preparation)
        check_names(model, source, preparation)
        verified: Any = source.dataset
        labelled = read_samples(source, command.batch_size, False)
        settings = {name: getattr(command, name) for name in TAKEN_OVER}
        correction = correct(model, labelled, verified_from="unseen", drawn="mixed", progress=False, **settings)
        judging = replace(source, dataset=Verified(verified.origin, job["later"], [0] * len(job["later"])))
        judges = read_samples(judging, command.predicting_size, False)
        apart = apart_from(judges, [labelled])  # a copy of what it was made from cannot judge it
        later = [job["later"][i] for i in apart]
        samples, _ = understood(model, judges, device_of(model), command.outputs)
        before, after = (
            predicted_classes(predicted(each, samples, apart)).tolist() if apart else []
            for each in (model, correction.model)
        )
    found = Look(
        about=job["about"],
        turns=job["turns"],
        since=job["turns"],
        labels=job["labels"],
        before=dict(zip(later, before, strict=True)),
        after=dict(zip(later, after, strict=True)),
        changed=correction.changed,
        seconds=round(time.perf_counter() - began, 1),
    )
    import msgspec

    write_atomically(folder / FOUND, lambda place: place.write_bytes(msgspec.json.encode(found)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
