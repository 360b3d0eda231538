"""Killed processes and full disks: all files old or all new, one line, nothing left over; see benchmarks/crashes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.crashes import (
    FORMS,
    PAGE,
    World,
    fill_the_disk,
    in_process,
    kill_at_each_call,
    kill_at_random,
    resize,
    small_disk,
    tree,
    used,
    world,
)
from safetensors.torch import save_file

from tests.checkpoint_cases import arguments, some_net, write_world
from verifix.cli.main import main
from verifix.errors import OutputError, UsageError
from verifix.storage import transaction as staging
from verifix.storage.atomic import Output, write_atomically, write_together
from verifix.storage.transaction import settle

KILL = """
import os, signal, sys
from verifix.storage import transaction as staging
from verifix.cli.main import main
finish = staging.Move.carry_out
def killed(move):
    if move.name.endswith(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    finish(move)
staging.Move.carry_out = killed
main(sys.argv[2:])
"""
"""The command line, killed just before the file with a certain ending takes its place."""


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_a_kill_at_a_random_moment_leaves_the_old_or_the_new(form, tmp_path):
    result = kill_at_random(world(tmp_path, form), 5)
    assert result["faults"] == []
    assert result["killed"] >= 1  # some may have finished before the signal came


@pytest.mark.slow
@pytest.mark.parametrize(("form", "over"), [("safetensors", True), ("pt", False), ("folder", True)])
def test_a_kill_at_any_call_to_the_file_system_leaves_the_old_or_the_new(form, over, tmp_path):
    result = kill_at_each_call(world(tmp_path, form), over=over, every=6)
    assert result["faults"] == []
    assert result["all_old_then"] >= 3
    assert result["all_new_then"] >= 3


def test_where_folders_cannot_be_exchanged_the_next_run_puts_the_old_one_back(tmp_path, monkeypatch):
    monkeypatch.setattr(staging, "exchange", lambda *_: False)
    result = kill_at_each_call(world(tmp_path, "folder"), over=True, every=4, at_once=False)
    assert result["faults"] == []
    assert result["all_new_then"] >= 3


@pytest.fixture
def disk():
    try:
        with small_disk(1 << 26) as place:
            yield place
    except PermissionError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("form", ["pt", "folder"])
def test_a_full_disk_leaves_the_old_at_every_stage(form, tmp_path, disk):
    place = world(tmp_path, form)
    result = fill_the_disk(World(form, place.source, disk, place.corrections, place.saved), steps=8)
    assert result["faults"] == []
    assert set(result["refused"]) == {FORMS[form][1], "net.correction.safetensors", "moments.safetensors"}


def command_line(
    *argv: object, code: str = "", cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code else ["-m", "verifix"]
    words = [sys.executable, *program, *map(str, argv)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, cwd=cwd)


def test_the_command_line_says_in_one_line_that_the_disk_is_full(tmp_path, disk):
    write_world(tmp_path)
    save_file(some_net().state_dict(), tmp_path / "c.safetensors")
    (disk / "f.safetensors").write_bytes(b"old")
    resize(disk, used(disk) + PAGE)
    argv = arguments("c.safetensors", disk / "f.safetensors", "--force")
    result = command_line(*argv, cwd=tmp_path)
    assert result.returncode == 1
    (line,) = [line for line in result.stderr.splitlines() if "error" in line]
    assert line.startswith(f"verifix: error: {disk}/f.")
    assert "No space left on device" in line
    assert result.stdout == ""
    assert tree(disk) == {"f.safetensors": b"old"}


def test_a_picture_that_does_not_fit_leaves_the_old_one(disk):
    from verifix.cli.demo.pictures import decision_boundaries

    (disk / "decision-boundaries.png").write_bytes(b"old")
    resize(disk, used(disk) + 2 * PAGE)
    panel = ("a network", torch.nn.Linear(2, 2), torch.arange(6) % 2)
    with pytest.raises(OutputError, match=r"boundaries.png could not be written \(OSError: \[Errno 28\] No space left"):
        decision_boundaries([panel, panel], torch.randn(6, 2), disk)
    assert tree(disk) == {"decision-boundaries.png": b"old"}


@pytest.mark.parametrize("moment", ["f.pt", "correction.safetensors"])
def test_a_killed_run_does_not_block_the_next_one(moment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    torch.save(some_net().state_dict(), tmp_path / "c.pt")
    argv = arguments("c.pt", "f.pt")
    killed = command_line(moment, *argv, code=KILL)
    assert killed.returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir() if path.name.startswith((".f.pt", "f."))}
    assert len(left) == (1 if moment == "f.pt" else 2)
    assert main(argv) == 2  # the writing was decided: the next run finishes it, and then finds a file there
    assert "f.pt exists already" in capsys.readouterr().err
    assert {path.name for path in tmp_path.glob("*f.*")} == {"f.pt", "f.correction.safetensors"}
    assert not list(tmp_path.glob(".f.*"))
    assert main(["undo", "f.pt", "--out", "back.pt"]) == 0
    assert Path("back.pt").read_bytes() == Path("c.pt").read_bytes()


def test_a_run_that_is_alive_is_left_alone(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    seen: list[set[str]] = []

    def look(child: int) -> None:
        settle(target)
        seen.append(set(tree(tmp_path)))
        os.kill(child, signal.SIGKILL)

    def work(ready) -> None:
        write_atomically(target, lambda path: (path.write_text("half"), ready(), signal.pause()), force=True)

    code, said = in_process(work, look)
    assert (code, said) == (-signal.SIGKILL, "")
    (half,) = [name for name in seen[0] if name.endswith("0/a.txt")]
    assert half.startswith(".a.txt.")
    settle(target)
    assert tree(tmp_path) == {"a.txt": b"old"}


def test_what_looks_like_a_leftover_and_is_none_is_kept(tmp_path):
    target = tmp_path / "a.txt"
    for name in (".a.txt.abcdefgh.tmp", ".a.txt.b.abcdefgh.tmp", ".a.txt.abcdefghi.tmp", "a.txt.abcdefgh.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "precious").write_text("x")
    (tmp_path / ".a.txt.12345678.tmp").write_text("a file")
    (tmp_path / ".a.txt.87654321.tmp").symlink_to(tmp_path / ".a.txt.abcdefgh.tmp")
    (tmp_path / ".a.txt.00000000.tmp").mkdir()  # killed before it was locked
    (tmp_path / ".a.txt.b.00000000.tmp").mkdir()  # another target's
    before = set(tree(tmp_path))
    write_atomically(target, lambda path: path.write_text("new"))
    assert set(tree(tmp_path)) == (before | {"a.txt"}) - {".a.txt.00000000.tmp"}


def leave_a_plan(folder: Path) -> None:
    """A run that is killed when its writing is decided and nothing has been renamed."""

    def work(_) -> None:
        staging.Move.carry_out = lambda _: os.kill(os.getpid(), signal.SIGKILL)
        write_atomically(folder / "a.txt", lambda path: path.write_text("new"), force=True)

    assert in_process(work, lambda _: None)[0] == -signal.SIGKILL


@pytest.mark.parametrize("there", [True, False])
def test_a_plan_is_carried_out_only_on_what_it_was_made_for(there, tmp_path):
    target = tmp_path / "a.txt"
    for meanwhile in (None, "newer"):
        target.write_text("old") if there else target.unlink(missing_ok=True)
        leave_a_plan(tmp_path)
        if meanwhile:
            target.write_text(meanwhile)
        settle(target)
        assert tree(tmp_path) == {"a.txt": (meanwhile or "new").encode()}


@pytest.mark.parametrize("content", ["", "{", "[]", "[{}]", '[{"name": "../b"}]', "7"])
def test_a_plan_that_makes_no_sense_does_no_harm(content, tmp_path):
    folder = tmp_path / ".a.txt.abcdefgh.tmp"
    folder.mkdir()
    (folder / "lock").touch()
    (folder / "plan.json").write_text(content)
    write_atomically(tmp_path / "a.txt", lambda path: path.write_text("new"))
    assert tree(tmp_path)["a.txt"] == b"new"


def outputs(folder: Path, *names: str) -> list[Output]:
    return [Output(folder / name, lambda path: path.write_text("new")) for name in names]


@pytest.mark.parametrize("can_exchange", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_all_or_nothing_also_if_the_second_rename_fails(there, can_exchange, tmp_path, monkeypatch):
    finish, swap = staging.Move.carry_out, staging.exchange
    (tmp_path / "d").mkdir()
    if there:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "mark").write_text("old")
    before = tree(tmp_path)

    def fail(move: staging.Move) -> None:
        if move.name == "b":
            raise OSError("no\nluck")
        finish(move)

    monkeypatch.setattr(staging.Move, "carry_out", fail)
    monkeypatch.setattr(staging, "exchange", swap if can_exchange else lambda *_: False)
    folder = Output(tmp_path / "a", lambda path: (path / "mark").write_text("new"), folder=True, marks=("mark",))
    with pytest.raises(OutputError, match=r"a could not be written \(OSError: no luck\)"):
        write_together([folder, *outputs(tmp_path, "b")], force=True)
    assert tree(tmp_path) == before
    monkeypatch.undo()
    write_together([folder, *outputs(tmp_path, "b", "d/c")], force=True)
    assert tree(tmp_path) == {"a": b"", "a/mark": b"new", "b": b"new", "d": b"", "d/c": b"new"}


def test_a_target_that_another_program_changes_meanwhile_is_left_alone(tmp_path):
    target = tmp_path / "a"

    def interfere(path: Path) -> None:
        path.write_text("new")
        target.write_text("theirs")

    with pytest.raises(OutputError, match="a was changed by another program in the meantime"):
        write_atomically(target, interfere)
    assert tree(tmp_path) == {"a": b"theirs"}
    with pytest.raises(UsageError, match="exists already"):
        write_together(outputs(tmp_path, "b", "a"))
    assert tree(tmp_path) == {"a": b"theirs"}


def test_names_as_long_as_can_be_and_strange_ones_are_written(tmp_path):
    for name in ("x" * 255, "ä" * 127, "a b\n*[c]"):
        write_atomically(tmp_path / name, lambda path: path.write_text("new"))
        (tmp_path / name).chmod(0o640)
        write_atomically(tmp_path / name, lambda path: path.write_text("newer"), force=True)
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o640
        assert tree(tmp_path) == {name: b"newer"}
        (tmp_path / name).unlink()


def test_the_committed_figures_are_without_a_fault():
    record = json.loads((Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "crashes.json").read_text())
    for kind in ("random_kills", "kills_at_each_call", "kills_with_nothing_before", "full_disk"):
        assert record[kind].keys() == FORMS.keys()
        assert all(result["faults"] == [] for result in record[kind].values())
    assert all(result["killed"] == 100 for result in record["random_kills"].values())
