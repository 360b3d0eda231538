"""What a kill and a full disk cost: nothing, or there is a fault.

Run from the repository's root: ``python -m benchmarks.crashes --kills 100``. Writes JSON to benchmarks/results.

A process writes a corrected checkpoint, its correction file and the moments over those of an earlier correction, by the
very function of ``verifix correct``. Each process is forked from this one, so that a thousand of them take minutes.

1. Killed by SIGKILL at a random moment of the writing. Right after that every file must be byte-identical to the old
   one or to the new one. Then the next run to the same place begins: all files must be old, or all new, and nothing
   else may lie there. Then it ends: all must be new.
2. The same with the kill at each single call to the file system, one after the other, and with nothing there before.
3. The same on a disk (tmpfs) with a little more room each time: as long as it does not suffice the process must say so
   in one line, and leave everything as it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.environment import environment
from verifix import Correction, SavedMoments, collect_moments, correct
from verifix.cli.commands.correct import output_of_moments, outputs_of
from verifix.errors import VerifixError
from verifix.io.checkpoints.read import read_checkpoint
from verifix.storage.atomic import write_together
from verifix.storage.transaction import settle

OUT = Path("benchmarks/results/crashes.json")
PAGE = os.sysconf("SC_PAGE_SIZE")
WATCHED = ("os.", "open", "shutil.", "tempfile.", "fcntl.", "ctypes.dlsym")
"""Beginnings of the names of Python's audit events that stand for a call to the file system."""

Tree = dict[str, bytes]


def network() -> nn.Module:
    """Make a network of 0.4 MB."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 3)).eval()


def samples() -> tuple[Tensor, Tensor]:
    """Make samples to correct it from."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 64, generator=generator), torch.arange(40) % 3


def as_folder(root: Path) -> Path:
    """Save it in two files with an index, as save_pretrained does."""
    folder = root / "source"
    folder.mkdir()
    state = network().state_dict()
    shards = {"model-1.safetensors": list(state)[:2], "model-2.safetensors": list(state)[2:]}
    for name, keys in shards.items():
        save_file({key: state[key] for key in keys}, folder / name)
    index = {"weight_map": {key: name for name, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text("{}")
    return folder


def as_safetensors(root: Path) -> Path:
    """Save it as safetensors."""
    save_file(network().state_dict(), root / "source.safetensors")
    return root / "source.safetensors"


def as_torch(root: Path) -> Path:
    """Save it in a training checkpoint."""
    torch.save({"epoch": 3, "state_dict": network().state_dict()}, root / "source.pt")
    return root / "source.pt"


FORMS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "safetensors": (as_safetensors, "net.safetensors"),
    "pt": (as_torch, "net.pt"),
    "folder": (as_folder, "net"),
    "correction file": (as_safetensors, "net.correction.safetensors"),
}
"""What is written: how its source is made, and the name of the first file or folder."""


@dataclass(frozen=True)
class World:
    """A place to write to, and what must be there before and after.

    Attributes
    ----------
    form
        A key of `FORMS`.
    source
        The uncorrected checkpoint.
    out
        The folder with everything that is written, and nothing else.
    corrections
        An earlier correction and a new one.
    saved
        Moments, written together with each.
    """

    form: str
    source: Path
    out: Path
    corrections: tuple[Correction, Correction]
    saved: SavedMoments

    @property
    def target(self) -> Path:
        """The first file or folder that is written."""
        return self.out / FORMS[self.form][1]

    def write(self, number: int, ready: Callable[[], object] = lambda: None) -> None:
        """Write the earlier correction or the new one, by the function of the command line.

        Parameters
        ----------
        number
            0 or 1.
        ready
            Called when everything is read, and the writing begins.
        """
        correction = self.corrections[number]
        if self.form == "correction file":
            ready()
            correction.save(self.target, force=True)
            return
        checkpoint, model = read_checkpoint(self.source), network()
        checkpoint.load_into(model)
        ready()
        outputs = outputs_of(correction, model, checkpoint, str(self.target), None)
        outputs.append(output_of_moments(self.saved, str(self.out / "moments.safetensors")))
        write_together(outputs, force=True)


def world(root: Path, form: str) -> World:
    """Make the source and both corrections in an empty folder."""
    (root / "out").mkdir()
    model, data = network(), samples()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = (correct(model, data, alpha=alpha, progress=False) for alpha in (30.0, 300.0))
        saved = collect_moments(model, data, progress=False)
    return World(form, FORMS[form][0](root), root / "out", (first, second), saved)


def tree(folder: Path) -> Tree:
    """Return every file and folder, with what is in it."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def put(folder: Path, content: Tree) -> None:
    """Make a folder hold this and nothing else."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name in sorted(content):
        path = folder / name
        if any(other.startswith(f"{name}/") for other in content):
            path.mkdir()
        else:
            path.write_bytes(content[name])


def in_process(work: Callable[[Callable[[], object]], object], then: Callable[[int], object]) -> tuple[int, str]:
    """Fork a process that works, and do something to it as soon as it says that it is ready.

    Parameters
    ----------
    work
        Receives a function to call when ready.
    then
        Receives the number of the process.

    Returns
    -------
    code : int
        How it ended; negative for a signal.
    said : str
        The error that ended it, if any.
    """
    reads, writes = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads; they are idle
        child = os.fork()
    if child == 0:
        code = 1
        try:
            work(lambda: os.write(writes, b"!"))
            code = 0
        except VerifixError as error:
            os.write(writes, str(error).encode())
            code = 2 + error.exit_code
        except BaseException as error:
            os.write(writes, repr(error).encode())
        os._exit(code)
    os.close(writes)
    said = os.read(reads, 1)
    then(child)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with os.fdopen(reads, "rb") as pipe:
        said += pipe.read()
    return code, said.decode().removeprefix("!")


def snapshots(place: World) -> tuple[Tree, Tree, float]:
    """Write both corrections undisturbed; return what is there after each, and how long the writing takes, in s."""
    trees, times = [], []
    for number in (0, 1, 0, 1):
        start: list[float] = []
        in_process(lambda ready, n=number: place.write(n, ready), lambda _, s=start: s.append(time.perf_counter()))  # type: ignore[misc]
        times.append(time.perf_counter() - start[0])
        trees.append(tree(place.out))
    if trees[:2] != trees[2:]:
        raise AssertionError(f"{place.form}: the same correction gives different bytes")
    return trees[0], trees[1], statistics.median(times)


def judge(place: World, old: Tree, new: Tree, *, at_once: bool = True) -> dict[str, Any]:
    """Look at what a killed process has left, then at what the next run makes of it.

    Parameters
    ----------
    place
        The world.
    old, new
        What was there before, and what the process wanted to write.
    at_once
        Whether each file must be there at once, before the next run.

    Returns
    -------
    dict
        ``fault`` (empty if there is none), whether files were ``left`` over, and whether all was ``new`` in the end.
    """
    found = tree(place.out)
    left = any(name.startswith(".") for name in found)
    for name in {name.partition("/")[0] for name in {**old, **new} if at_once}:
        was, is_now, will = (_below(content, name) for content in (old, found, new))
        if is_now not in (was, will):
            return {"fault": f"{name} is neither the old nor the new one", "left": left, "new": False}
    settle(place.target)
    found = tree(place.out)
    if found not in (old, new):
        fault = f"the next run leaves {sorted(set(found) - set(new)) or 'a mixture'}"
        return {"fault": fault, "left": left, "new": False}
    place.write(1)
    fault = "" if tree(place.out) == new else "the next run does not write what it should"
    return {"fault": fault, "left": left, "new": found == new}


def _below(content: Tree, name: str) -> Tree:
    return {path: value for path, value in content.items() if path == name or path.startswith(f"{name}/")}


def kill_at_random(place: World, kills: int, seed: int = 0) -> dict[str, Any]:
    """Kill at random moments of the writing; see the module."""
    old, new, seconds = snapshots(place)
    moments = random.Random(seed)
    outcomes: list[dict[str, Any]] = []

    def kill(child: int) -> None:
        time.sleep(moments.uniform(0, seconds))
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)

    while len(outcomes) < 3 * kills and sum(x["code"] == -signal.SIGKILL for x in outcomes) < kills:
        put(place.out, old)
        code, said = in_process(lambda ready: place.write(1, ready), kill)
        outcomes.append(judge(place, old, new) | {"code": code, "said": said})
    return summary(outcomes) | {"milliseconds_of_writing": round(1000 * seconds, 1)}


def kill_at_each_call(place: World, *, over: bool, every: int = 1, at_once: bool = True) -> dict[str, Any]:
    """Kill at the first call to the file system, at the second, and so on; see the module.

    Parameters
    ----------
    place
        The world.
    over
        Whether an earlier correction is there.
    every
        Leave out calls: 1 takes each, 5 every fifth.
    at_once
        Whether the system can exchange two folders; if not, the old one may be missing until the next run.

    Returns
    -------
    dict
        See `summary`.
    """
    old, new, _ = snapshots(place)
    old, number = old if over else {}, 1
    outcomes: list[dict[str, Any]] = []

    def work(ready: Callable[[], object]) -> None:
        ready()
        place.write(1, lambda: sys.addaudithook(Killer(number)))

    while not outcomes or outcomes[-1]["code"] == -signal.SIGKILL:
        put(place.out, old)
        code, said = in_process(work, lambda _: None)
        outcomes.append(judge(place, old, new, at_once=at_once) | {"code": code, "said": said})
        number += every
    return summary(outcomes[:-1])


class Killer:
    """Kill this process at a certain call to the file system."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self, event: str, _: Any) -> None:
        """Count a call."""
        if event.startswith(WATCHED):
            self.left -= 1
            if self.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def summary(outcomes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Count outcomes."""
    faults = [x["fault"] or f"{x['code']}: {x['said']}" for x in outcomes if x["fault"] or x["code"] not in (0, -9)]
    return {
        "processes": len(outcomes),
        "killed": sum(x["code"] == -signal.SIGKILL for x in outcomes),
        "with_leftovers_at_first": sum(x["left"] for x in outcomes),
        "all_old_then": sum(not x["new"] for x in outcomes) - len(faults),
        "all_new_then": sum(x["new"] for x in outcomes),
        "faults": faults,
    }


@contextmanager
def small_disk(size: int) -> Iterator[Path]:
    """Mount a disk of so many bytes in memory.

    Parameters
    ----------
    size
        Its size.

    Yields
    ------
    Path
        Where it is mounted.

    Raises
    ------
    PermissionError
        If this process may not mount.
    """
    with tempfile.TemporaryDirectory() as name:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise PermissionError(f"mounting is not permitted here: {done.stderr.strip()}")
        try:
            yield Path(name)
        finally:
            subprocess.run(["umount", name], check=True)


def resize(disk: Path, size: int) -> None:
    """Give a small disk another size in bytes."""
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def used(disk: Path) -> int:
    """Return how many bytes of a disk are in use."""
    found = os.statvfs(disk)
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def fill_the_disk(place: World, steps: int = 12) -> dict[str, Any]:
    """Write to a disk with a little more room each time; see the module."""
    old, new, _ = snapshots(place)
    refused: Counter[str] = Counter()
    faults, room = [], 0
    need = sum(-(-len(content) // PAGE) * PAGE for content in new.values())
    while room < 4 * need:
        resize(place.out, 16 * need)
        put(place.out, old)
        resize(place.out, used(place.out) + room)
        code, said = in_process(lambda ready: place.write(1, ready), lambda _: None)
        if code == 0:
            break
        name = said.partition(" could not be written")[0].rpartition("/")[2]
        refused[name] += 1
        if code != 3 or "\n" in said or tree(place.out) != old:
            faults.append(f"{room} bytes: {code}, {said!r}, left {sorted(set(tree(place.out)) ^ set(old))}")
        room += max(PAGE, need // steps // PAGE * PAGE)
    resize(place.out, 16 * need)
    place.write(1)
    if tree(place.out) != new:
        faults.append("the next run does not write what it should")
    return {"refused": dict(refused), "sufficient_bytes": room, "faults": faults}


def measure(kills: int) -> dict[str, Any]:
    """Measure everything, for every form."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {"random_kills": {}, "kills_at_each_call": {}, "kills_with_nothing_before": {}}
    for form in FORMS:
        for name, how in {
            "random_kills": lambda place: kill_at_random(place, kills),
            "kills_at_each_call": lambda place: kill_at_each_call(place, over=True),
            "kills_with_nothing_before": lambda place: kill_at_each_call(place, over=False),
        }.items():
            with tempfile.TemporaryDirectory() as root:
                results[name][form] = how(world(Path(root), form))
                sys.stdout.write(f"{name}, {form}: {results[name][form]}\n")
                sys.stdout.flush()
    try:
        results["full_disk"] = {form: on_a_small_disk(form) for form in FORMS}
    except PermissionError as error:
        results["full_disk"] = str(error)
    return results


def on_a_small_disk(form: str, steps: int = 12) -> dict[str, Any]:
    """Fill a disk with one form; see `fill_the_disk`."""
    with tempfile.TemporaryDirectory() as root:
        place = world(Path(root), form)
        with small_disk(1 << 26) as disk:
            result = fill_the_disk(World(form, place.source, disk, place.corrections, place.saved), steps)
    sys.stdout.write(f"full disk, {form}: {result}\n")
    return result


def file_system(folder: Path) -> str:
    """Return the kind of file system that a folder is on, such as ext4."""
    words = ["stat", "--file-system", "--format=%T", str(folder)]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Measure and write what came out."""
    parser = argparse.ArgumentParser(description="Kill writing processes and fill disks.")
    parser.add_argument("--kills", type=int, default=100, help="random kills of each form")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write the figures")
    arguments = parser.parse_args()
    record = {**measure(arguments.kills), "file_system": file_system(Path(tempfile.gettempdir())), **environment()}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
