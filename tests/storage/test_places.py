"""What is never replaced: special files, inputs, and what the files of a checkpoint folder lead to."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import get_type_hints

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import verifix
from tests.cases import small_data, small_net
from tests.checkpoint_cases import arguments, some_net, write_world
from tests.record_cases import header, record, write
from verifix.cli.main import main
from verifix.cli.options import COMMANDS
from verifix.errors import UsageError
from verifix.report.files import write_text
from verifix.settings import Role
from verifix.storage.atomic import check_apart, check_output, write_atomically

NO_FILE = ("fifo", "socket", "device", "to-device", "to-fifo", "to-descriptor", "to-stdout")
"""All of them lie in the folder of the test: a fault must cost no machine its /dev."""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path, checkpoint="c.safetensors")
    return tmp_path


def make(what: str, path: Path) -> Path:
    """Make what is no regular file; return its path."""
    if what == "fifo":
        os.mkfifo(path)
    elif what == "socket":
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(path.name)
    elif what == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")
    elif what == "to-fifo":
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")
    else:
        where = {"to-device": "/dev/null", "to-descriptor": "/proc/self/fd/1", "to-stdout": "/dev/stdout"}
        path.symlink_to(where[what])
    return path


def kind(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return stat.S_IFMT(found.st_mode), found.st_ino


def command_line(*words: object, **streams) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "verifix", *map(str, words)]
    return subprocess.run(argv, stderr=subprocess.PIPE, text=True, timeout=120, check=False, **streams)


@pytest.mark.parametrize("what", NO_FILE)
@pytest.mark.parametrize("flag", ["--out", "--report", "--result", "--card", "--save-moments", "correction file"])
def test_no_output_replaces_what_is_no_regular_file(what, flag, here, capsys):
    path = make(what, Path("o.safetensors"))
    if flag == "correction file":
        path = path.rename("f.correction.safetensors")
    before = kind(path)
    words = [] if flag == "correction file" else [flag, str(path)]
    assert main([*arguments("c.safetensors", "f.safetensors", "--force"), *words]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()  # before the work: nothing else has been said
    assert "only regular files are replaced, so name a file" in line
    assert out == ""
    assert kind(path) == before
    assert not Path("f.safetensors").exists()


@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdout", "/dev/stderr", "/dev/fd/1", "/proc/self/fd/1"])
def test_what_belongs_to_the_system_is_no_output(path):
    what = "a device" if path == "/dev/null" else "a link of the system"
    with pytest.raises(UsageError, match=f"^{path} is {what}; only regular files are replaced, so name a file$"):
        check_output(path, force=True)  # it alone, which writes nothing


@pytest.mark.parametrize("target", ["a file", "a pipe"])
def test_standard_output_is_no_file_to_replace_wherever_it_leads(target, here):
    with Path("stdout.txt").open("w") as file:
        stream = file if target == "a file" else subprocess.PIPE
        make("to-stdout", Path("r.json"))
        words = arguments("c.safetensors", "f.safetensors", "--force", "--result", "r.json")
        result = command_line(*words, stdout=stream)
    assert result.returncode == 2
    assert (
        "r.json is a link to /dev/stdout, a link of the system; only regular files are replaced, so name a file"
        in result.stderr
    )
    assert Path("r.json").is_symlink()
    assert not Path("f.safetensors").exists()


@pytest.mark.parametrize("what", ["fifo", "to-device", "to-descriptor"])
@pytest.mark.parametrize("save", ["correction", "moments", "text"])
def test_nor_does_python(what, save, here):
    path = make(what, Path("o.safetensors"))
    before = kind(path)
    model, samples = small_net().eval(), small_data()
    savers = {
        "correction": verifix.correct(model, samples, alpha=20, progress=False).save,
        "moments": verifix.collect_moments(model, samples, progress=False).save,
        "text": partial(write_text, text="text"),
    }
    with pytest.raises(UsageError, match="only regular files are replaced"):
        savers[save](path, force=True)
    assert kind(path) == before


def test_the_pictures_of_a_demonstration_neither(here, capsys):
    Path("pictures").mkdir()
    path = make("fifo", Path("pictures/strength-curve.png"))
    assert main(["demo", "spiral", "--out", "pictures", "--force"]) == 2
    assert "strength-curve.png is a named pipe; only regular files" in capsys.readouterr().err
    assert stat.S_ISFIFO(path.lstat().st_mode)


def test_undo_neither(here, capsys):
    assert main(arguments("c.safetensors", "f.safetensors")) == 0
    path = make("fifo", Path("back.safetensors"))
    assert main(["undo", "f.safetensors", "--out", str(path), "--force"]) == 2
    assert "back.safetensors is a named pipe" in capsys.readouterr().err


def test_a_link_to_a_file_is_replaced_and_the_file_left_alone(tmp_path):
    target, link = tmp_path / "blob", tmp_path / "link"
    target.write_text("precious")
    target.chmod(0o640)
    link.symlink_to("blob")
    with pytest.raises(UsageError, match="link exists already"):
        write_atomically(link, lambda path: path.write_text("new"))
    write_atomically(link, lambda path: path.write_text("new"), force=True)
    assert (target.read_text(), link.read_text(), link.is_symlink()) == ("precious", "new", False)
    assert link.stat().st_mode & 0o777 == 0o640


def test_a_link_that_leads_nowhere_is_there_all_the_same(tmp_path):
    for name, target in (("link", "gone"), ("loop", "loop")):
        link = tmp_path / name
        link.symlink_to(target)
        with pytest.raises(UsageError, match="exists already"):
            write_atomically(link, lambda path: path.write_text("new"))
        assert link.is_symlink()
        write_atomically(link, lambda path: path.write_text("new"), force=True)
        assert (link.read_text(), (tmp_path / "gone").exists()) == ("new", False)


def test_files_in_shared_memory_are_files():
    place = Path("/dev/shm")
    if not os.access(place, os.W_OK):
        pytest.skip("no shared memory")
    path, link = (place / f"verifix-{os.getpid()}{end}" for end in ("", "-link"))
    try:
        link.symlink_to(path)
        for _ in range(2):
            write_atomically(path, lambda path: path.write_text("new"), force=True)
        write_atomically(link, lambda path: path.write_text("newer"), force=True)
        assert (path.read_text(), link.read_text()) == ("new", "newer")
    finally:
        path.unlink(missing_ok=True)
        link.unlink(missing_ok=True)


# What each input is given in the loop below, and what must not be written then.

INPUTS = {
    "model": ("py:net.py:build", "net.py"),
    "checkpoint": ("c.safetensors", "c.safetensors"),
    "verified": ("v.npz", "v.npz"),
    "trusted": ("v.npz", "v.npz"),
    "unlabelled": ("t.npz", "t.npz"),
    "noisy": ("t.npz", "t.npz"),
    "test": ("t.npz", "t.npz"),
    "data": ("v.npz", "v.npz"),
    "moments": ("m.safetensors", "m.safetensors"),
    "image_root": ("images", "images/new.safetensors"),
    "classes": ("classes.txt", "classes.txt"),
    "class_shares": ("shares.txt", "shares.txt"),
    "weights_file": ("weights.npy", "weights.npy"),
    "config": ("cfg.yaml", "cfg.yaml"),
    "correction": ("f.correction.safetensors", "f.correction.safetensors"),
    "before": ("c.safetensors", "c.safetensors"),
    "after": ("c.safetensors", "c.safetensors"),
    "pool": ("t.npz", "t.npz"),
    "source": ("m.csv", "m.csv"),
    "queue": ("q.jsonl", "q.jsonl"),
    "records": ("r.jsonl", "r.jsonl"),
}


def of_role(command: type, *roles: Role) -> list[str]:
    kinds = get_type_hints(command, include_extras=True)
    return [f.name for f in fields(command) if set(roles) & set(getattr(kinds[f.name], "__metadata__", ()))]


READING = [role for role in Role if role is not Role.WRITES]
PAIRS = [
    (name, source, output)
    for name, command in COMMANDS.items()
    for source in of_role(command, *READING)
    for output in of_role(command, Role.WRITES)
    if name != "demo"  # its only output is a folder; see below
]


def test_every_setting_that_may_name_a_path_says_so():
    """A text is a path unless it is known here to be something else, so that a new setting cannot be forgotten."""
    words = {
        "alpha",
        "annotator",
        "batch_size",
        "budget",
        "crop_mode",
        "device",
        "drawn",
        "exclude",
        "expect_accuracy",
        "format",
        "groups",
        "image_column",
        "include",
        "input_shape",
        "interpolation",
        "label_column",
        "mean",
        "memory",
        "model_kwargs",
        "name",
        "outputs",
        "proof",
        "push_to_hub",
        "recipe",
        "std",
        "strategy",
        "text_column",
        "trust",
        "verified_from",
        "weights",
    }
    for command in COMMANDS.values():
        texts = {f.name for f in fields(command) if "str" in str(f.type) or "Literal" in str(f.type)}
        assert texts - words <= set(of_role(command, *Role)), command
        assert not words & set(of_role(command, *Role)), command
        assert set(of_role(command, *READING)) <= INPUTS.keys()
    assert {name for name, *_ in PAIRS} == {"correct", "undo", "score", "select", "review", "import", "export"}
    assert len(PAIRS) > 50


def write_inputs() -> None:
    x, y = (np.load("v.npz")[key] for key in "xy")
    np.savez("t.npz", x=x[::-1], y=y[::-1])
    np.save("weights.npy", np.ones(60))
    Path("classes.txt").write_text("a\nb\nc\n")
    Path("shares.txt").write_text("0.2\n0.3\n0.5\n")
    Path("cfg.yaml").write_text("json: false\n")
    Path("images").mkdir()
    Path("m.csv").write_text("id,label\n0,1\n")
    head = header("v.npz", [None] * 60, y.tolist(), None)
    write(Path("r.jsonl"), head, record(0, "1", "2"))
    write(Path("q.jsonl"), head | {"format": "verifix-queue-1"})
    model = some_net()
    verifix.collect_moments(model, (torch.from_numpy(x), torch.from_numpy(y)), progress=False).save("m.safetensors")


def words_of(name: str, source: str, output: str) -> list[str]:
    given, path = INPUTS[source]
    if name == "undo":
        words = ["undo", "f.safetensors"]
    elif name == "score":
        words = ["score", "c.safetensors", "--model", "py:net.py:build", "--data", "v.npz"]
    elif name == "select":
        words = ["select", "c.safetensors", "--model", "py:net.py:build", "--data", "v.npz", "--out", "new.jsonl"]
        path = "r.jsonl" if source == "verified" else path
        words += ["--verified", "r.jsonl"] if source == "verified" else []
    elif name == "review":
        words = ["review", "q.jsonl", "--model", "py:net.py:build", "--checkpoint", "c.safetensors"]
        words += ["--verified-from", "unseen"]
    elif name == "import":
        words = ["import", "m.csv", "--format", "manifest", "--out", "new.jsonl"]
        words += [] if source == "queue" else ["--data", "v.npz"]
    elif name == "export":
        words = ["export", "r.jsonl", "--format", "cleaned", "--out", "new.csv"]
    else:
        words = arguments("c.safetensors", "new.safetensors")
        if source == "trusted":
            at = words.index("--verified")
            del words[at : at + 4]
        if source in ("test", "class_shares", "weights_file"):
            at = words.index("--proof")
            words[at : at + 2] = ["--drawn", "random"] if source != "test" else []
    said = ("checkpoint", "model", "verified", "data", "source", "records", *(["queue"] if name == "review" else []))
    flags = {} if source in said and name != "undo" else {source: given}
    if name == "undo" and source == "checkpoint":
        flags, path = {}, "f.safetensors"
    flags[output] = path
    return [
        *words,
        *(["--force"] if name not in ("score", "review") else []),
        *(word for key, value in flags.items() for word in (f"--{key.replace('_', '-')}", value)),
    ]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    before = Path.cwd()
    os.chdir(root)
    try:
        write_world(root)
        save_file(some_net().state_dict(), "c.safetensors")
        assert main(arguments("c.safetensors", "f.safetensors")) == 0
        write_inputs()
    finally:
        os.chdir(before)
    return root


@pytest.mark.parametrize(("name", "source", "output"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_no_input_of_any_setting_is_written_by_any_output(name, source, output, inputs, monkeypatch, capsys):
    monkeypatch.chdir(inputs)
    *words, given = words_of(name, source, output)
    expected = "is inside an input folder" if source == "image_root" else "is an input; it is never overwritten"
    if name in ("correct", "undo") and output == "out" and not given.endswith(".safetensors"):
        expected = "differ in format"  # which is looked at first
    spellings = [given, f"./images/../{given}"]
    if Path(given).exists() and expected != "differ in format":
        spellings += [f"{kind}-{name}-{source}-{output}.safetensors" for kind in ("hard", "link")]
        os.link(given, spellings[2])
        Path(spellings[3]).symlink_to(given)
    before = {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()}
    for path in spellings:
        assert main([*words, path]) == 2, path
        assert expected in capsys.readouterr().err, path
    assert {file: file.read_bytes() for file in Path().rglob("*") if file.is_file()} == before


def test_pictures_of_a_demonstration_do_not_replace_its_settings(here, capsys):
    Path("pictures").mkdir()
    path = Path("pictures/strength-curve.png")
    path.write_text("seeds: 1\n")
    assert main(["demo", "spiral", "--config", str(path), "--out", "pictures", "--force"]) == 2
    assert "strength-curve.png is an input; it is never overwritten" in capsys.readouterr().err
    assert path.read_text() == "seeds: 1\n"


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ("shard-{000..001}.tar", "shard-001.tar"),
        ("saved:train", "saved/train/new.html"),
        ("webvision:folder", "folder/info/new.html"),
        ("clothing1m:folder:clean_test", "folder/new.html"),
        ("folder", "folder/new.html"),
    ],
)
def test_samples_of_every_form_are_inputs(data, path, here, capsys):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    if not path.endswith("new.html"):
        Path(path).write_text("x")
    assert main([*arguments("c.safetensors", "f.safetensors", "--force", "--report", path), "--verified", data]) == 2
    assert "input" in (err := capsys.readouterr().err)
    assert "verifix: error: " + path in err


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("py:net:build", "net.py"),
        ("py:package.net:build", "package/net.py"),
        ("py:package.net:build", "package/__init__.py"),
        ("hf:folder", "folder/new.html"),
        ("local-dir:folder", "folder/new.html"),
    ],
)
def test_models_of_every_form_are_inputs(model, path, here, capsys):
    for folder in ("package", "folder"):
        Path(folder).mkdir()
    for file in ("package/__init__.py", "package/net.py"):
        Path(file).write_text(Path("net.py").read_text())
    assert main([*arguments("c.safetensors", "f.safetensors", "--force", "--report", path), "--model", model]) == 2
    assert "verifix: error: " + path in (err := capsys.readouterr().err)
    assert "input" in err


def test_a_folder_named_like_a_word_in_another_setting_is_no_input(here, capsys):
    for name in ("build", "clean_test", "project"):
        Path(name).mkdir()
    assert main([*arguments("c.safetensors", "build/f.safetensors", "--result", "clean_test/r.json")]) == 0


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.json", "a.json"), ("a.json", "./sub/../a.json"), ("a.json", "A.JSON"), ("\u00e4", "a\u0308"), ("h1", "h2")],
    ids=["same", "dots", "capitals", "accents", "hard links"],
)
def test_two_outputs_are_two_files(first, second, here, capsys):
    Path("sub").mkdir()
    Path("h1").write_text("precious")
    os.link("h1", "h2")
    words = arguments("c.safetensors", "f.safetensors", "--force", "--result", first, "--report", second)
    assert main(words) == 2
    assert "is the name of two outputs" in capsys.readouterr().err
    assert Path("h2").read_text() == "precious"


def test_an_output_given_twice_is_no_other_output(here, capsys):
    for flag in ("--report", "--result", "--card", "--save-moments"):
        assert main(arguments("c.safetensors", "f.safetensors", flag, "f.safetensors")) == 2
        assert "f.safetensors is the name of two outputs" in capsys.readouterr().err


def test_a_link_is_where_it_lies_and_not_where_it_leads(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "x.png").write_text("x")
    (tmp_path / "report").symlink_to("data/y.png")
    check_apart([tmp_path / "report"], [tmp_path / "data"])  # the link is replaced, and nothing in the folder
    (tmp_path / "data" / "z.png").symlink_to("../elsewhere")
    with pytest.raises(UsageError, match="inside an input folder"):
        check_apart([tmp_path / "data" / "z.png"], [tmp_path / "data"])
    (tmp_path / "way").symlink_to("data", target_is_directory=True)
    with pytest.raises(UsageError, match="inside an input folder"):
        check_apart([tmp_path / "way" / "new"], [tmp_path / "data"])
