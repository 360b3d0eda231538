"""The copy of a checkpoint folder: no link leads out of it, and what cannot be copied is found before the work."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.checkpoint_cases import arguments, some_net, write_world
from verifix.cli.main import main

REMEDY = "a corrected folder is a copy of the given one, so remove it, or replace it by what it leads to"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path)
    (tmp_path / "m" / "sub").mkdir(parents=True)
    save_file(some_net().state_dict(), "m/model.safetensors")
    Path("m/config.json").write_text("{}")
    Path("m/sub/notes.txt").write_text("kept")
    Path("secret").mkdir()
    Path("secret/id_rsa").write_text("key")
    return tmp_path


def link(place: str, target: str) -> None:
    Path(place).symlink_to(target)


def bound(place: str) -> None:
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(place)


OBSTACLES = {
    "folder outside": (lambda: link("m/assets", "../secret"), "m/assets is a link to ../secret, which is not in"),
    "file outside": (lambda: link("m/key", "../secret/id_rsa"), "m/key is a link to ../secret/id_rsa, which is not in"),
    "absolute": (lambda: link("m/key", str(Path("secret").resolve())), "m/key is a link to "),
    "deep": (lambda: link("m/sub/key", "../../secret/id_rsa"), "m/sub/key is a link to ../../secret/id_rsa"),
    "by way of a link": (lambda: [link("m/a", "sub"), link("m/sub/b", "../../secret")], "b is a link to ../../secret"),
    "without end": (lambda: link("m/zero", "/dev/zero"), "m/zero is a link to /dev/zero, which is not in"),
    "dangling": (lambda: link("m/gone", "nowhere"), "m/gone is a link to nowhere, which is not there"),
    "itself": (lambda: link("m/loop", "loop"), "m/loop is a link to loop, which is not there"),
    "its folder": (lambda: link("m/latest", "."), "m/latest is a link to a folder that it is in"),
    "a folder above": (lambda: link("m/sub/up", ".."), "m/sub/up is a link to a folder that it is in"),
    "each other": (
        lambda: [Path("m/o").mkdir(), link("m/o/a", "../sub"), link("m/sub/b", "../o")],
        "is a link to a folder that it is in",
    ),
    "pipe": (lambda: os.mkfifo("m/pipe"), "m/pipe is a named pipe"),
    "socket": (lambda: bound("m/socket"), "m/socket is a socket"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_copied_is_found_before_the_work(name, here, capsys):
    make, text = OBSTACLES[name]
    make()
    before = sorted(here.rglob("*"))
    assert main(arguments("m", "fixed")) == 5
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert line.endswith(REMEDY)
    assert sorted(here.rglob("*")) == before


def test_whoever_only_reads_the_folder_is_not_stopped(here, capsys):
    link("m/assets", "../secret")
    os.mkfifo("m/pipe")
    assert main(["score", "m", "--model", "py:net.py:build", "--data", "v.npz", "--no-progress"]) == 0


def test_all_obstacles_are_counted(here, capsys):
    for name in "abc":
        link(f"m/{name}", "../secret")
    assert main(arguments("m", "fixed")) == 5
    assert "m/a is a link to ../secret, which is not in the folder m, and 2 more; " in capsys.readouterr().err


def test_links_within_the_folder_are_copied_as_what_they_lead_to(here, capsys):
    Path("m/checkpoint-7").mkdir()
    Path("m/checkpoint-7/state.json").write_text("7")
    link("m/latest", "checkpoint-7")
    link("m/sub/again.txt", "notes.txt")
    link("m/sub/absolute.txt", str(Path("m/config.json").resolve()))
    assert main(arguments("m", "fixed")) == 0
    copied = {str(p.relative_to("fixed")): p.read_text() for p in Path("fixed").rglob("*.[jt]*") if p.is_file()}
    assert copied == {
        "config.json": "{}",
        "checkpoint-7/state.json": "7",
        "latest/state.json": "7",
        "sub/notes.txt": "kept",
        "sub/again.txt": "kept",
        "sub/absolute.txt": "{}",
    }
    assert not any(path.is_symlink() for path in Path("fixed").rglob("*"))
    assert main(["undo", "fixed", "--out", "back"]) == 0
    assert Path("back/latest/state.json").read_text() == "7"


def test_weights_may_lie_elsewhere(here, capsys):
    Path("store").mkdir()
    Path("m/model.safetensors").rename("store/big.safetensors")
    link("m/model.safetensors", "../store/big.safetensors")
    before = Path("store/big.safetensors").read_bytes()
    assert main(arguments("m", "fixed")) == 0
    assert not Path("fixed/model.safetensors").is_symlink()
    assert Path("store/big.safetensors").read_bytes() == before


def snapshot(root: Path) -> Path:
    """A folder of the cache of the Hugging Face hub, as huggingface_hub lays it out, with its refs beside."""
    repository = root / "models--org--net"
    folder = repository / "snapshots" / "0123abcd"
    (folder / "sub").mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    for i, file in enumerate(("model.safetensors", "config.json", "sub/notes.txt")):
        blob = repository / "blobs" / f"{i:040x}"
        (root / "m" / file).rename(blob)
        (folder / file).symlink_to(os.path.relpath(blob, (folder / file).parent))
    return folder


@pytest.mark.parametrize("way", ["path", "link"])
def test_a_snapshot_of_the_hub_is_followed_to_its_blobs(way, here, capsys):
    folder = snapshot(here)
    if way == "link":
        link("hub", str(folder))
        folder = Path("hub")
    blobs = {path: path.read_bytes() for path in here.rglob("blobs/*")}
    assert main(arguments(folder, "fixed")) == 0
    assert Path("fixed/sub/notes.txt").read_text() == "kept"
    assert Path("fixed/config.json").read_text() == "{}"
    assert {path: path.read_bytes() for path in here.rglob("blobs/*")} == blobs


@pytest.mark.parametrize(
    "target", ["../../refs/main", "../../../secret/id_rsa", "../../blobs-of-another/x", "../../blobs/gone"]
)
def test_a_snapshot_leads_nowhere_else(target, here, capsys):
    folder = snapshot(here)
    (here / "models--org--net" / "blobs-of-another").mkdir()
    (here / "models--org--net" / "blobs-of-another" / "x").write_text("x")
    (folder / "key").symlink_to(target)
    assert main(arguments(folder, "fixed")) == 5
    assert f"key is a link to {target}, which is not " in capsys.readouterr().err
    assert not Path("fixed").exists()


def test_an_index_alone_has_no_neighbours(here, capsys):
    link("m/assets", "../secret")
    keys = some_net().state_dict()
    index = {"metadata": {}, "weight_map": dict.fromkeys(keys, "model.safetensors")}
    Path("m/model.safetensors.index.json").write_text(json.dumps(index))
    assert main(arguments("m/model.safetensors.index.json", "fixed")) == 0
    assert {path.name for path in Path("fixed").iterdir()} == {"model.safetensors", "model.safetensors.index.json"}
