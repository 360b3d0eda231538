"""One cell of the benchmark: one method on one network, scored once, in one JSON file.

A cell is named by everything that decides it, and its file by the cell:
``benchmarks/results/cells/TASK/ARCHITECTURE/NOISE-RATE/verified-N/seed-S/METHOD.json``.
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from benchmarks.methods import METHODS
from benchmarks.methods.base import answered
from benchmarks.noise import realised
from benchmarks.tasks import case
from verifix.losses import correct_or_not
from verifix.model.answers import predicted
from verifix.model.samples import Samples
from verifix.model.tensors import model_digest
from verifix.storage.atomic import write_atomically

FOLDER = Path("benchmarks/results/cells")


@dataclass(frozen=True, order=True)
class Cell:
    """What one cell is about.

    Attributes
    ----------
    task, architecture, noise, rate
        As in `benchmarks.tasks`.
    verified
        Number of verified samples.
    seed
        Of samples, labels, weights and everything else that is drawn.
    method
        A name of `benchmarks.methods.METHODS`.
    """

    task: str
    architecture: str
    noise: str
    rate: float
    verified: int
    seed: int
    method: str

    @property
    def network(self) -> tuple[str, str, str, float, int]:
        """What decides the network that is corrected."""
        return self.task, self.architecture, self.noise, self.rate, self.seed

    def path(self, folder: Path = FOLDER) -> Path:
        """Return the file of this cell."""
        noise, verified, seed = f"{self.noise}-{self.rate:g}", f"verified-{self.verified}", f"seed-{self.seed}"
        return folder / self.task / self.architecture / noise / verified / seed / f"{self.method}.json"

    def __str__(self) -> str:
        """Name the cell in one line."""
        return str(self.path(Path()).with_suffix(""))


def measured(cell: Cell, shared: Path | None = None, cache: Path | None = None) -> dict[str, Any]:
    """Run one cell.

    Parameters
    ----------
    cell
        Which one.
    shared
        Folder with data and networks, for the tasks that need it.
    cache
        Folder for trained networks.

    Returns
    -------
    dict
        What goes into its file.
    """
    where = (cell.task, cell.architecture, cell.noise, cell.rate, cell.verified, cell.seed)
    problem, unseen = case(*where, shared, cache)
    labels = realised(problem.truth, problem.training.labels, problem.classes)
    with peak_memory() as peak:
        answer = answered(METHODS[cell.method].make, problem)
    record: dict[str, Any] = {
        **asdict(cell),
        "obstacle": answer.obstacle,
        "before": percent_right(predicted(problem.model, unseen, range(len(unseen))), unseen),
        "after": None if answer.obstacle else percent_right(answer.predict(unseen, range(len(unseen))), unseen),
        "unseen": len(unseen),
        "looks_at_unseen": 1,
        "chosen": answer.chosen,
        "tried": [asdict(setting) for setting in answer.tried],
        "seconds": round(answer.seconds, 2),
        "runs": answer.runs,
        "peak_gigabytes": peak["gigabytes"],
        "wrong_labels": labels.wrong,
        "transition_matrix": [[round(share, 4) for share in row] for row in labels.matrix.tolist()],
        "model_sha256": model_digest(problem.model),
        "verified_sha256": problem.verified.digest(),
        "unseen_sha256": unseen.digest(),
    }
    return record | environment()


def percent_right(logits: Any, samples: Samples) -> float:
    """Return the accuracy of logits ``[n, classes]`` in percent."""
    return 100 * float(correct_or_not(logits, samples.labels).mean())


def write(cell: Cell, record: dict[str, Any], folder: Path = FOLDER) -> None:
    """Write a cell's file, counting the looks at unseen samples that were taken for it before.

    Parameters
    ----------
    cell
        Which cell.
    record
        What `measured` returned.
    folder
        Where all cells are.
    """
    path = cell.path(folder)
    if path.exists():
        record = record | {"looks_at_unseen": record["looks_at_unseen"] + read(path)["looks_at_unseen"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"), force=True)


def read(path: Path) -> dict[str, Any]:
    """Return the content of a cell's file."""
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return record


@contextmanager
def peak_memory() -> Iterator[dict[str, float | None]]:
    """Measure the most memory that the process holds meanwhile, in gigabytes.

    Yields
    ------
    dict
        ``gigabytes``, when it is over; None where the system does not tell.
    """
    found: dict[str, float | None] = {"gigabytes": None}
    process = Path("/proc/self")
    known = (process / "clear_refs").exists()
    gc.collect()
    if known:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)  # what is free goes back to the system, and does not count
        (process / "clear_refs").write_text("5")  # begins a new peak
    yield found
    if known:
        line = next(x for x in (process / "status").read_text().splitlines() if x.startswith("VmHWM"))
        found["gigabytes"] = round(1024 * int(line.split()[1]) / 1e9, 2)
