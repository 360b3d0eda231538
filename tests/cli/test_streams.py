"""Standard output holds the result alone, its end is no fault, and names cannot steer a terminal: real processes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint_cases import NET, arguments, some_net, write_world
from verifix.cli.main import main
from verifix.errors import printable

VERIFIX = f"{sys.executable} -m verifix"


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_world(tmp_path, checkpoint="c.safetensors")
    return tmp_path


def shell(line: str, **env: str) -> tuple[int, str, str]:
    """Run a line of bash, whose exit code is that of the first command of a pipe."""
    script = f'{line}; exit "${{PIPESTATUS[0]}}"'
    environment = os.environ | env
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=False, env=environment
    )
    return result.returncode, result.stdout, result.stderr


def correct(*more: str) -> str:
    return f"{VERIFIX} {' '.join([*arguments('c.safetensors', 'f.safetensors', '--force'), *more])}"


SCORE = f"{VERIFIX} score c.safetensors --model py:net.py:build --data v.npz --no-progress"

# What a factory may write to, each marked so that it is found again.

NOISE = {
    "print": "print('NOISE')",
    "descriptor": "os.write(1, b'NOISE\\n')",
    "child": "subprocess.run([sys.executable, '-c', 'print(\"NOISE\")'], check=True)",
    "child of a shell": "os.system('echo NOISE')",
    "C": "ctypes.CDLL(None).printf(b'NOISE\\n')",
    "C, unflushed": "ctypes.CDLL(None).printf(b'NOISE')",
    "first stream": "sys.__stdout__.write('NOISE\\n')",
    "own stream": "globals().update(kept=os.fdopen(os.dup(1), 'w')); kept.write('NOISE')",
    "end of Python": "atexit.register(lambda: os.write(1, b'NOISE'))",
    "end, by print": "atexit.register(lambda: print('NOISE'))",
    "thread": "start(lambda: [os.write(1, b'NOISE ') and time.sleep(0.01) for _ in 'x' * 300])",
    "child that stays": "subprocess.Popen('for i in 1 2 3 4 5 6 7 8; do echo NOISE; sleep 0.5; done', shell=True)",
}
FACTORY = """
import atexit, ctypes, os, subprocess, sys, threading, time

def start(work):
    threading.Thread(target=work).start()

def noisy():
    {}
    return build()
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOISE)
def test_standard_output_holds_the_result_alone(kind, here):
    Path("net.py").write_text(NET + FACTORY.format(NOISE[kind]))
    code, out, err = shell(f"{SCORE.replace(':build', ':noisy')} --json")
    assert code == 0, err
    assert json.loads(out)["samples"] == 60
    assert "NOISE" in err


def test_results_for_reading_are_alone_as_well(here):
    Path("net.py").write_text(NET + FACTORY.format(NOISE["child"]))
    _, expected, _ = shell(SCORE)
    code, out, err = shell(SCORE.replace(":build", ":noisy"))
    assert (code, out) == (0, expected)
    assert "NOISE" in err


def test_within_a_process_everything_comes_back(here, capfd):
    Path("net.py").write_text(NET + FACTORY.format(f"{NOISE['C, unflushed']}; {NOISE['descriptor']}"))
    stream = sys.stdout
    words = ["score", "c.safetensors", "--model", "py:net.py:noisy", "--data", "v.npz", "--no-progress", "--json"]
    for _ in range(2):
        assert main(words) == 0
        out, err = capfd.readouterr()
        assert json.loads(out)["samples"] == 60
        assert err.count("NOISE") == 2
    assert sys.stdout is stream
    os.write(1, b"mine")
    assert capfd.readouterr().out == "mine"


# The ends of the streams.


@pytest.mark.slow
@pytest.mark.parametrize("end", ["| true", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2> >(true)", "2>&1 | true"])
def test_the_exit_code_is_the_verdict_whoever_reads(end, here):
    code, out, err = shell(f"{correct('--result', 'r.json')} {end}")
    assert code == 0
    assert not any(word in out + err for word in ("Traceback", "Exception ignored", "BrokenPipe", "AttributeError"))
    assert Path("f.safetensors").is_file()
    assert Path("f.correction.safetensors").is_file()
    assert json.loads(Path("r.json").read_text())["changed"]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["| true", ">&-", "2>&-", "2>&1 | true"])
def test_so_it_is_if_the_verdict_is_another(end, here):
    x, y = (np.load("v.npz")[key] for key in "xy")
    steps = 1e-3 * np.arange(120, dtype=np.float32)[:, None, None, None]
    np.savez("v.npz", x=np.concatenate([x, x]) + steps, y=np.concatenate([y, y]))
    line = correct("--result", "r.json", "--no-check-labels").replace(" --force", "")
    line = line.replace("--proof none", "--proof split --drawn random --no-check-inputs").replace(
        "--alpha 30", "--alpha 1e12"
    )  # too weak to matter
    assert shell(f"{line} {end}")[0] == 3
    assert Path("r.json").is_file()
    assert not Path("f.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize("end", ["| true", ">&-", "2>&-", "2>&1 | true"])
def test_errors_keep_their_exit_code(end, here):
    assert shell(f"{correct('--alpha', '-1')} {end}")[0] == 2
    assert shell(f"{VERIFIX} inspect --model py:nowhere.py:build --input-shape 3 {end}")[0] == 2


@pytest.mark.parametrize("words", ["--help", "correct --help", "--version", "demo --print-config"])
def test_help_may_be_cut_off(words, here):
    code, _, err = shell(f"{VERIFIX} {words} | true")
    assert (code, err) == (0, "")
    code, _, err = shell(f"{VERIFIX} {words} >&-")
    assert (code, err) == (0, "")


def test_a_file_never_takes_the_number_of_a_closed_stream(here):
    """What C writes to descriptor 1 would end up in the first file that is opened once the descriptor is closed."""
    Path("net.py").write_text(
        NET + FACTORY.format("; ".join((NOISE["descriptor"], NOISE["child"], "os.write(2, b'N')")))
    )
    assert shell(f"{correct().replace(':build', ':noisy')} <&- >&- 2>&-")[0] == 0
    assert main(["undo", "f.safetensors", "--out", "b.safetensors"]) == 0  # which verifies both files by hash
    assert Path("b.safetensors").read_bytes() == Path("c.safetensors").read_bytes()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_result_that_cannot_be_written_is_said_in_one_line(here):
    code, _, err = shell(f"{correct()} > /dev/full")
    assert code == 1
    assert [line for line in err.splitlines() if "note" not in line] == [
        "verifix: error: the result cannot be written to stdout ([Errno 28] No space left on device); send it "
        "elsewhere. Files of this run are complete"
    ]
    assert Path("f.safetensors").is_file()


# Neighbours of a model's file.

LAZY = """
def lazy():
    from helper import build
    return build()

def later():
    from torch import nn
    class Later(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build()
        def forward(self, x):
            import helper
            return helper.run(self.net, x)
    return Later()
"""
HELPER = "def run(net, x):\n    return net(x)\n"


@pytest.mark.parametrize("model", ["py:code/net.py:lazy", "py:net:lazy"])
def test_a_factory_imports_its_neighbour_when_it_needs_it(model, here, capsys):
    folder = Path("code" if "code" in model else ".")
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(NET + LAZY)
    (folder / "helper.py").write_text(NET + HELPER)
    before = list(sys.path), set(sys.modules)
    words = ["score", "c.safetensors", "--model", model, "--data", "v.npz", "--no-progress"]
    assert main(words) == 0, capsys.readouterr().err
    assert sys.path == before[0]
    assert not {"helper", "net", "_verifix_model_net"} & (sys.modules.keys() - before[1])


def test_a_model_imports_its_neighbour_when_it_runs(here, capsys):
    Path("code").mkdir()
    Path("code/net.py").write_text(NET + LAZY)
    Path("code/helper.py").write_text(HELPER)
    net = some_net()
    save_file({f"net.{k}": v for k, v in net.state_dict().items()}, "d.safetensors")
    for command in (["score", "d.safetensors"], ["correct", "d.safetensors", "--out", "g.safetensors"]):
        words = [*command, "--model", "py:code/net.py:later", "--no-progress"]
        more = ["--data", "v.npz"] if "score" in command else ["--verified", "v.npz", "--verified-from", "unseen"]
        more += [] if "score" in command else ["--alpha", "30", "--proof", "none", "--no-check-inputs"]
        assert main([*words, *more]) == 0, capsys.readouterr().err


def test_each_model_has_its_own_neighbours(here, capsys):
    """Two commands of one process, whose models have neighbours of the same name."""
    scores = []
    for name, sign in (("one", 1), ("two", -1)):
        Path(name).mkdir()
        Path(name, "net.py").write_text(NET + LAZY)
        flipped = f"def run(net, x):\n    return {sign} * net(x)\n"
        Path(name, "helper.py").write_text(flipped)
        save_file({f"net.{k}": v for k, v in some_net().state_dict().items()}, "d.safetensors")
        words = ["score", "d.safetensors", "--model", f"py:{name}/net.py:later", "--data", "v.npz", "--no-progress"]
        assert main([*words, "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["accuracy"])
    x, y = (torch.from_numpy(np.load("v.npz")[key]) for key in "xy")
    with torch.no_grad():
        logits = some_net()(x)
    expected = [100 * float((sign * logits).argmax(1).eq(y).double().mean()) for sign in (1, -1)]
    assert scores == pytest.approx(expected)
    assert scores[0] != scores[1]


def test_a_neighbour_does_not_take_the_place_of_a_library(here, capsys):
    """Libraries that are first needed after the model was built."""
    Path("code").mkdir()
    Path("code/net.py").write_text(NET)
    for name in ("datasets", "pyarrow", "jinja2"):
        Path(f"code/{name}.py").write_text("raise RuntimeError('the neighbour was imported')\n")
    words = " ".join(arguments("c.safetensors", "f.safetensors", "--report", "r.html", "--card", "c.md"))
    code, _, err = shell(f"{VERIFIX} {words.replace('py:net.py', 'py:code/net.py')}")
    assert code == 0, err


# Names that steer a terminal.

EVIL = "a\x1b[2J\x1b]0;pwned\x07\x9b31m\r\x08\x7f\u202eb\u2066"
LINES = f"{EVIL}\nverdict: improved"


def is_harmless(text: str) -> bool:
    bad = {"Cc", "Cs", "Zl", "Zp"}
    turns = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
    return not any((unicodedata.category(c) in bad and c not in "\n\t") or c in turns for c in text)


def test_what_is_shown_cannot_steer():
    assert printable(EVIL) == "a␛[2J␛]0;pwned␇\ufffd31m␍␈␡\ufffdb\ufffd"
    assert (
        printable("é 日本 \u3000 \u200d 👩\u200d🔬 שלום\u200f\t\n") == "é 日本 \u3000 \u200d 👩\u200d🔬 שלום\u200f\t\n"
    )
    assert printable("a\nb", one_line=True) == "a␊b"
    assert is_harmless(printable("".join(map(chr, range(0x3000))) + "\udcff"))


def shown(words: list[str], capsys) -> str:
    """Return all that a command says; nothing in it may steer, and no name may begin a line."""
    main(words)
    out, err = capsys.readouterr()
    assert is_harmless(out), repr(out)
    assert is_harmless(err), repr(err)
    assert not any(line.startswith("verdict: improved") for line in (out + err).splitlines())
    return out + err


@pytest.mark.parametrize("form", ["models", "predictions"])
def test_compare_shows_class_names_as_they_are(form, here, capsys):
    names = [LINES, "b", "c"]
    x, y = (np.load("v.npz")[key] for key in "xy")
    words, checked = ["c.safetensors", "d.safetensors", "--model", "py:net.py:build"], ["--no-check-inputs"]
    save_file(some_net(seed=2).state_dict(), "d.safetensors")
    if form == "predictions":
        for file, model in (("a.npy", some_net()), ("b.npy", some_net(seed=2))):
            with torch.no_grad():
                np.save(file, model(torch.from_numpy(x)).numpy())
        words = ["a.npy", "b.npy"]
    np.savez("n.npz", x=x, y=y)
    Path("c.yaml").write_text(f"classes: {json.dumps(names)}\n")
    text = shown(["compare", *words, "--data", "n.npz", "--config", "c.yaml", "--no-progress", *checked], capsys)
    assert "a␛[2J" in text
    assert "␊verdict: improved: " in text


ODD = """
from torch import nn

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.add_module({name!r}, nn.Linear(48, 3))
        self.add_module({name!r} + "2", nn.Linear(5, 5))

    def forward(self, x):
        return self._modules[{name!r}](x.flatten(1))

def odd():
    return Odd()
"""


def test_parameter_names_are_shown_as_they_are(here, capsys):
    name = LINES.replace(".", "")
    Path("odd.py").write_text(ODD.format(name=name))
    names: dict = {}
    exec(Path("odd.py").read_text(), names)
    model = names["odd"]()
    torch.save(model.state_dict() | {f"{name}.unexpected": torch.ones(1)}, "odd.pt")
    torch.save({"model": model.state_dict(), "other": 1}, "fine.pt")
    assert "␊verdict" in shown(["inspect", "--model", "py:odd.py:odd", "--input-shape", "3,4,4"], capsys)
    assert "␛" in shown(["score", "odd.pt", "--model", "py:odd.py:odd", "--data", "v.npz"], capsys)
    words = arguments("fine.pt", "g.pt", factory="odd")
    words[2] = "py:odd.py:odd"
    assert "␊verdict" in shown(words, capsys)


def test_file_names_are_shown_as_they_are(here, capsys):
    evil = EVIL.replace("/", "")
    for place in ("v", "out"):
        Path(f"{place}{evil}.npz").write_bytes(Path("v.npz").read_bytes())
    assert "␛" in shown(["score", "c.safetensors", "--model", "py:net.py:build", "--data", f"gone{evil}"], capsys)
    words = arguments("c.safetensors", f"f{evil}.safetensors", "--save-moments", f"m{evil}.safetensors")
    assert "Wrote f" in shown([*words, "--verified", f"v{evil}.npz"], capsys)
    assert "Wrote b" in shown(["undo", f"f{evil}.safetensors", "--out", f"b{evil}.safetensors"], capsys)
    assert "␛" in shown(["undo", f"gone{evil}.safetensors", "--out", "b.safetensors"], capsys)


def test_file_names_in_a_folder_are_shown_as_they_are(here, capsys):
    Path("m").mkdir()
    save_file(some_net().state_dict(), "m/model.safetensors")
    Path(f"m/pytorch_model{LINES}.bin").write_text("left out")
    Path(f"m/notes{LINES}").write_text("kept")
    assert "␛" in shown(arguments("m", "fixed"), capsys)
    Path(f"fixed/notes{LINES}").write_text("changed")
    assert "␊verdict" in shown(["undo", "fixed", "--out", "back"], capsys)


def test_labels_in_a_table_are_shown_as_they_are(here, capsys):
    with Path("t.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "label"], ["x", LINES], ["y", "b"]])
    for words in (["score", "c.safetensors", "--data"], ["inspect", "--data"]):
        assert "error" in shown([*words, "t.csv", "--model", "py:net.py:build"], capsys)


def test_json_is_not_touched(here, capsys):
    Path("c.yaml").write_text(f"classes: {json.dumps([LINES, 'b', 'c'])}\n")
    save_file(some_net(seed=2).state_dict(), "d.safetensors")
    words = ["compare", "c.safetensors", "d.safetensors", "--model", "py:net.py:build", "--data", "v.npz"]
    text = shown([*words, "--config", "c.yaml", "--no-progress", "--no-check-inputs", "--json"], capsys)
    assert json.loads(text[text.index("{") : text.rindex("}") + 1])["compared"]["class_names"][0] == LINES
