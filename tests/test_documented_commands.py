"""Every command and every piece of Python in README and docs runs, or is named in a table with the reason."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from tests.documented import ELSEWHERE, PAGES, ROOT, SUBSTITUTIONS, arguments, reason, shell_commands, substituted
from verifix.cli.main import main, parse

CLASSES = ["cat", "dog", "fox"]
SIZE = (32, 32)
NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 16), nn.ReLU(), nn.Linear(16, 3))
"""
SPAM = """
from torch import nn

def build():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), nn.Sigmoid())
"""
TYPED = [(page.name, command) for page in PAGES for command in shell_commands(page)]


@pytest.mark.parametrize(("page", "command"), TYPED, ids=[f"{page}: {command}"[:90] for page, command in TYPED])
def test_every_command_parses_or_names_what_is_there(page, command):
    words = arguments(substituted(command))
    if words is not None:
        assert "…" not in words
        of_records = words[0] == "correct" and "verified.jsonl" in words  # which say how they were drawn
        parse([*words, *(["--drawn", "random"] if of_records else [])])
    elif command.startswith("pip install"):
        extras = re.search(r"\[(.*)\]", command)
        known = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        for extra in extras.group(1).split(",") if extras else ():
            assert re.search(rf"^{extra} = \[", known, re.M)
    elif command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    elif command.startswith("python -m "):
        assert importlib.util.find_spec(command.split()[2])
    elif "pytest" in command:
        assert (ROOT / command.split()[-1]).is_file()
    else:
        assert reason(command), "neither run nor named in the table"


def test_the_tables_name_nothing_that_is_not_there():
    typed = [command for _, command in TYPED]
    assert all(any(re.match(pattern, command) for command in typed) for pattern in ELSEWHERE)
    text = "\n".join(page.read_text(encoding="utf-8").replace("\\\n", "") for page in PAGES)
    joined = " ".join(text.split())
    unused = [given for given, _ in SUBSTITUTIONS if given not in joined and not given.startswith("--verified-from")]
    assert not unused


@pytest.fixture(scope="module")
def world(vision, tmp_path_factory):
    """The files that the pages name: small images, texts, trained networks, predictions."""
    root = tmp_path_factory.mktemp("world")
    _, timm = vision
    (root / "net.py").write_text(NET)
    (root / "classes.txt").write_text("\n".join(CLASSES))
    pictures = {}
    for name, count, seed in (("photos", 120, 0), ("verified", 66, 1000), ("test", 63, 2000), ("training", 60, 3000)):
        pictures[name] = [tiny.png(tiny.NAMES[i % 3], seed + i, SIZE) for i in range(count)]
        labels = [i % 3 for i in range(count)]
        table = {"image": [{"bytes": png, "path": None} for png in pictures[name]], "label": labels}
        pq.write_table(pa.table(table | {"patient": [f"p{i // 2}" for i in range(count)]}), root / f"{name}.parquet")
        for i, png in enumerate(pictures[name]):
            place = root / name / CLASSES[i % 3] / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(png)
    shutil.copy(root / "training.parquet", root / "other.parquet")
    for scheme, model in (("py", _built(NET)), ("timm", timm.create_model("test_resnet", num_classes=3))):
        x = torch.stack([_pixels(i) for i in range(60)])
        y = torch.arange(60) % 3
        _learn(model, x, torch.where(torch.arange(60) % 7 < 2, (y + 1) % 3, y))
        if scheme == "py":
            for name in ("net", "before", "after", "a", "b"):
                save_file(model.state_dict(), root / f"{name}.safetensors")
            torch.save(model.state_dict(), root / "net.pt")
        else:
            torch.save(model.state_dict(), root / "net.pth")
            save_file(model.state_dict(), root / "timm.safetensors")
    for folder in ("my-distilbert", "my-bert"):
        tiny.text_model(root / folder, train=True)
    for name, seed in (("checked", 3), ("verified", 4), ("test", 5), ("reviews", 6)):
        rows = [f"{text},{label}\n" for text, label in zip(*tiny.sentences(80, seed), strict=True)]
        (root / f"{name}.csv").write_text("text,label\n" + "".join(rows))
    truth = np.arange(60) % 3
    logits = np.random.default_rng(0).normal(size=(60, 3)) + 2 * np.eye(3)[truth]
    for name, values in (("a", logits), ("b", logits + np.eye(3)[truth]), ("labels", truth)):
        np.save(root / f"{name}.npy", values)
    return root


@pytest.fixture
def spam(tmp_path):
    """A network that ends in a sigmoid, and samples for it."""
    (tmp_path / "spam.py").write_text(SPAM)
    x = torch.randn(200, 4)
    y = (x.sum(dim=1) > 0).long()
    model = _built(SPAM)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(100):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy(model(x).squeeze(1), y.float()).backward()
        optimizer.step()
    torch.save(model.state_dict(), tmp_path / "spam.pt")
    np.savez(tmp_path / "test.npz", x=x.numpy(), y=y.numpy())


def _built(code: str) -> torch.nn.Module:
    names: dict = {}
    exec(code, names)
    return names["build"]()


def _pixels(i: int) -> torch.Tensor:
    return torch.from_numpy(np.array(tiny.picture(tiny.NAMES[i % 3], 3000 + i, SIZE))).permute(2, 0, 1) / 255


def _learn(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(x), y).backward()
        optimizer.step()


def decided(queue, out) -> None:
    """Answer a queue as a person would in Label Studio."""
    assert main(["export", str(queue), "--format", "label-studio", "--out", str(out), "--force"]) == 0
    tasks = json.loads(out.read_text())
    for task in tasks:
        label = task["data"]["image"].split("/")[-2]
        result = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]
        task["annotations"] = [
            {"result": result, "completed_by": {"email": "a@b.c"}, "updated_at": "2026-01-02T03:04:05Z"}
        ]
    out.write_text(json.dumps(tasks))


RUN = {
    page: [c for name, c in TYPED if name == page and not reason(c) and arguments(substituted(c))] for page, _ in TYPED
}


@pytest.mark.slow
@pytest.mark.parametrize("name", [page for page, commands in RUN.items() if commands])
def test_the_commands_of_a_page_run_one_after_the_other(name, world, spam, tmp_path, monkeypatch, capsys):
    shutil.copytree(world, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    given = "--data photos --classes cat,dog,fox --count 80 --out queue.jsonl --no-progress"
    if name in ("exchange.md", "selection.md"):  # what a page begins with that another one has made
        assert main(["select", "net.safetensors", "--model", "py:net.py:build", *given.split()]) == 0
        decided(tmp_path / "queue.jsonl", tmp_path / "project.json")
        words = "import project.json --format label-studio --queue queue.jsonl --out verified.jsonl"
        assert main(words.split()) == 0
    for command in RUN[name]:
        words = arguments(substituted(command))
        assert isinstance(words, list)
        if "timm:test_resnet" in words and "net.safetensors" in words:
            shutil.copy("timm.safetensors", "net.safetensors")
        code = main(words)
        out, err = capsys.readouterr()
        assert code == 0, f"{words}\n{err}"
        assert out
