"""`verifix select`, then records as a review writes them, then `verifix correct` from these."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import verifix
from tests.tiny import NAMES, image_folder, sentences, text_model
from verifix.cli.demo import digits
from verifix.cli.main import main
from verifix.io.data.open import open_data, reopen
from verifix.io.options import DataOptions
from verifix.selection.queue import read_queue

NET = """
from torch import nn

from verifix.cli.demo.training import mlp

def build():
    return mlp((64, 256, 256, 10), 0, norm=True)

def small():
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 12, 3))
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A network that has memorised wrong labels, and 600 digits that it has not seen, a fifth with a wrong label."""
    root = tmp_path_factory.mktemp("world")
    data = digits.load(0)
    (root / "net.py").write_text(NET)
    save_file(digits.trained(data, 0).state_dict(), root / "net.safetensors")
    torch.manual_seed(0)
    save_file(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(432, 3)).state_dict(), root / "small.safetensors")
    pool = [*data.verified, *data.unseen[:400]]
    true = data.labels[pool].numpy()
    wrong = np.random.default_rng(0).random(len(pool)) < 0.2
    given = np.where(wrong, (true + 1) % 10, true)
    np.savez(root / "pool.npz", x=data.inputs[pool].numpy(), y=given)
    np.save(root / "true.npy", true)
    image_folder(root / "photos", 30)
    return root


def run(capsys, *words) -> tuple[int, str, str]:
    code = main([*map(str, words), "--no-progress"])
    return code, *capsys.readouterr()


def select(world, out, capsys, *more) -> tuple[int, str, str]:
    given = [world / "net.safetensors", "--model", f"py:{world / 'net.py'}:build", "--data", world / "pool.npz"]
    return run(capsys, "select", *given, "--out", out, *more)


def review(queue_path: Path, path: Path, truth, upto: int | None = None) -> Path:
    """Write down what a reviewer says who knows the truth, in the order of the queue."""
    queue = read_queue(queue_path)
    names = queue.header.classes
    first, *_ = queue_path.read_text("utf-8").splitlines()
    lines = [json.dumps(json.loads(first) | {"format": "verifix-verified-1"})]
    for entry in queue.entries[:upto]:
        given, right = names[entry.label], names[truth[entry.id]]
        status = "ok" if given == right else "relabel"
        row = {"id": entry.id, "file": entry.file, "label": given, "verified": right, "status": status}
        lines.append(json.dumps(row | {"annotator": "ada", "time": "2026-01-01T00:00:00Z"}))
    path.write_text("\n".join([*lines, ""]), "utf-8")
    return path


def correct(world, verified, out, capsys, *more) -> tuple[int, str, str]:
    given = ["--model", f"py:{world / 'net.py'}:build", "--checkpoint", world / "net.safetensors"]
    given += ["--verified", verified, "--verified-from", "unseen", "--out", out, "--alpha", "1000", "--json"]
    return run(capsys, "correct", *given, *more)


def test_from_a_queue_to_a_proved_correction(world, tmp_path, capsys):
    queue = tmp_path / "queue.jsonl"
    code, out, err = select(world, queue, capsys, "--count", "300", "--json", "--strategy", "suspect")
    assert code == 0, err
    result = json.loads(out)
    assert result["parts"] == {"random": 150, "suspect": 150}
    assert (result["samples"], result["random"], result["probability"]) == (600, 150, 0.25)
    truth = np.load(world / "true.npy")
    verified = review(queue, tmp_path / "verified.jsonl", truth)
    code, out, err = correct(world, verified, tmp_path / "fixed.safetensors", capsys)
    result = json.loads(out)
    assert code in (0, 3), err
    assert result["proof"]["comparison"]["samples"] == 150
    assert not result["proof"]["comparison"]["weighted"]
    assert "drawn at random are judged" in result["proof"]["note"]
    assert result["provenance"]["drawn"] == "mixed"
    entries = read_queue(queue).entries
    ids = sorted(entry.id for entry in entries)
    x = torch.from_numpy(np.load(world / "pool.npz")["x"])
    random = {entry.id for entry in entries if entry.part == "random"}
    weights = np.array([4.0 * (i in random) for i in ids])
    model = digits.trained(digits.load(0), 0)
    want = verifix.prove(
        model,
        (x[ids], torch.from_numpy(truth[ids])),
        alpha=1000.0,
        drawn="mixed",
        weights=weights,
        progress=False,
        verified_from="unseen",
    )
    assert result["proof"]["comparison"] == json.loads(json.dumps(want.comparison.as_dict()))


def test_a_set_that_was_drawn_at_random_alone_is_proved_as_one(world, tmp_path, capsys):
    queue = tmp_path / "queue.jsonl"
    assert select(world, queue, capsys, "--count", "150", "--strategy", "random")[0] == 0
    verified = review(queue, tmp_path / "verified.jsonl", np.load(world / "true.npy"))
    code, out, err = correct(world, verified, tmp_path / "fixed.safetensors", capsys, "--proof", "split")
    result = json.loads(out)
    assert code in (0, 3), err
    assert result["provenance"]["drawn"] == "random"
    assert result["proof"]["comparison"]["samples"] == 75


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--drawn", "random"], "says itself how its samples were drawn"),
        (["--class-shares", "0.5,0.5"], "says itself how much its samples count"),
        (["--verified-from", "training"], "samples that the model was trained on prove nothing"),
    ],
    ids=str,
)
def test_what_records_say_themselves_is_not_overridden(world, tmp_path, capsys, more, told):
    queue = tmp_path / "queue.jsonl"
    select(world, queue, capsys, "--count", "60")
    verified = review(queue, tmp_path / "verified.jsonl", np.load(world / "true.npy"))
    code, out, err = correct(world, verified, tmp_path / "fixed.safetensors", capsys, *more)
    assert (code, out) == (2, "")
    assert told in err
    assert not (tmp_path / "fixed.safetensors").exists()


def test_without_random_samples_nothing_is_proved(world, tmp_path, capsys):
    queue = tmp_path / "queue.jsonl"
    select(world, queue, capsys, "--count", "200", "--random-share", "0.01")
    lines = review(queue, tmp_path / "verified.jsonl", np.load(world / "true.npy")).read_text().splitlines()
    random = {entry.id for entry in read_queue(queue).entries if entry.part == "random"}
    left = [line for line in lines[1:] if json.loads(line)["id"] not in random]
    (tmp_path / "verified.jsonl").write_text("\n".join([lines[0], *left, ""]))
    code, out, err = correct(world, tmp_path / "verified.jsonl", tmp_path / "fixed.safetensors", capsys)
    assert (code, out) == (5, "")
    assert "0 of the 198 verified samples were drawn at random" in err


def test_records_serve_every_command_that_reads_samples(world, tmp_path, capsys):
    queue = tmp_path / "queue.jsonl"
    select(world, queue, capsys, "--count", "120")
    truth = np.load(world / "true.npy")
    verified = review(queue, tmp_path / "verified.jsonl", truth)
    net = ["--model", f"py:{world / 'net.py'}:build"]
    code, out, _ = run(capsys, "score", world / "net.safetensors", *net, "--data", verified, "--json")
    assert code == 0
    ids = sorted(entry.id for entry in read_queue(queue).entries)
    x = torch.from_numpy(np.load(world / "pool.npz")["x"])[ids]
    right = (digits.trained(digits.load(0), 0)(x).argmax(1).numpy() == truth[ids]).mean()
    assert json.loads(out)["accuracy"] == pytest.approx(100 * right)
    code, out, err = select(world, tmp_path / "next.jsonl", capsys, "--verified", verified, "--count", "100")
    assert code == 0, err
    assert not set(ids) & {entry.id for entry in read_queue(tmp_path / "next.jsonl").entries}
    given = [world / "net.safetensors", *net, "--data", verified, "--out", tmp_path / "x.jsonl"]
    code, _, err = run(capsys, "select", *given)
    assert (code, "holds records on another data set" in err) == (2, True)


def test_images_are_found_again_by_name_from_anywhere(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(world)
    given = ["small.safetensors", "--model", "py:net.py:small", "--data", "photos", "--classes", ",".join(NAMES[::-1])]
    code, _, err = run(capsys, "select", *given, "--out", tmp_path / "q.jsonl", "--count", "10")
    assert code == 0, err
    queue = read_queue(tmp_path / "q.jsonl")
    monkeypatch.chdir(tmp_path)
    assert queue.header.data == str(world / "photos")
    found = reopen(queue.header, "q").dataset
    for entry in queue.entries:
        assert found.file(entry.id) == str(world / "photos" / entry.file)
        assert queue.header.classes[entry.label] == entry.file.split("/")[0]
    code, _, err = run(capsys, "select", *given[1:], "--out", tmp_path / "q.jsonl")
    assert (code, "exists already" in err or "give the trained weights" in err) == (2, True)


def test_images_without_labels(world, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, file in enumerate(sorted((world / "photos").rglob("*.png"))):
        (flat / f"{i}.png").write_bytes(file.read_bytes())
    given = [world / "small.safetensors", "--model", f"py:{world / 'net.py'}:small", "--data", flat, "--no-labels"]
    given += ["--classes", ",".join(NAMES), "--out", tmp_path / "q.jsonl"]
    code, _, err = run(capsys, "select", *given, "--count", "9")
    assert code == 0, err
    queue = read_queue(tmp_path / "q.jsonl")
    assert {entry.label for entry in queue.entries} == {None}
    assert len(reopen(queue.header, "q").dataset) == 30
    assert run(capsys, "select", *given, "--strategy", "suspect", "--force")[0] == 2
    first, *_ = (tmp_path / "q.jsonl").read_text().splitlines()
    row = {"id": 4, "file": "4.png", "label": None, "verified": "blue", "status": "relabel", "annotator": "ada"}
    verified = tmp_path / "v.jsonl"
    verified.write_text(
        json.dumps(json.loads(first) | {"format": "verifix-verified-1"}) + "\n" + json.dumps(row) + "\n"
    )
    assert list(open_data(verified, DataOptions(classes=NAMES)).dataset.labels) == [2]


def test_texts_are_found_again(vision, world, tmp_path, capsys):
    texts, labels = sentences(40, 0)
    table = tmp_path / "texts.jsonl"
    table.write_text("".join(json.dumps({"text": t, "label": y}) + "\n" for t, y in zip(texts, labels, strict=True)))
    folder = text_model(tmp_path / "bert")
    given = ["--model", f"hf:{folder}", "--data", table, "--out", tmp_path / "q.jsonl", "--count", "12"]
    code, _, err = run(capsys, "select", *given, "--strategy", "spread")
    assert code == 0, err
    queue = read_queue(tmp_path / "q.jsonl")
    assert queue.header.options["texts"]
    found = reopen(queue.header, "q").dataset
    for entry in queue.entries:
        assert found.text(entry.id) == texts[entry.id]
        assert queue.header.classes[entry.label] == labels[entry.id]
