"""The ways of three users, as they go them: a timm checkpoint with folders, a transformers folder with a table, and a
notebook.
"""

from __future__ import annotations

import csv
import json

import pytest
import torch

from tests import tiny
from verifix.cli.main import main

NAMES = ["ant", "cow", "zebra"]


def said(capsys, words: str) -> tuple[int, str, str]:
    code = main(words.split())
    return code, *capsys.readouterr()


def class_folders(root, n: int, seed: int) -> None:
    for i in range(n):
        folder = root / NAMES[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{i}.PNG").write_bytes(tiny.png(tiny.NAMES[i % 3], seed + i))


@pytest.fixture(scope="module")
def photos(vision, tmp_path_factory):
    """A checkpoint of timm, trained on folders of images of which a third has the wrong label, and new images."""
    _, timm = vision
    root = tmp_path_factory.mktemp("photos")
    class_folders(root / "verified", 66, 5000)
    class_folders(root / "new", 30, 8000)
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=3)
    config = timm.data.resolve_data_config({"input_size": (3, 16, 16)}, model=model)
    transform = timm.data.create_transform(**config, is_training=False)
    x = torch.stack([transform(tiny.picture(tiny.NAMES[i % 3], i)) for i in range(60)])
    y = torch.arange(60) % 3
    wrong = torch.where(torch.arange(60) % 7 < 2, (y + 1) % 3, y)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(20):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(x), wrong).backward()
        optimizer.step()
    torch.save({"state_dict": model.state_dict()}, root / "net.pth")
    return root


def test_an_engineer_with_a_checkpoint_of_timm_and_folders_of_images(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    data = "--size 16 --verified verified --verified-from unseen --drawn random --recipe refit --no-progress"
    code, _, err = said(capsys, f"correct net.pth --model test_resnet {data} --out {tmp_path}/fixed.pth")
    assert (code, "did you mean timm:test_resnet or torchvision:test_resnet?" in err) == (2, True)
    code, _, err = said(capsys, f"correct net.pth --model timm:test_resnett {data} --out {tmp_path}/fixed.pth")
    assert (code, "did you mean 'test_resnet'?" in err) == (2, True)
    code, _, err = said(capsys, f"correct netz.pth --model timm:test_resnet {data} --out {tmp_path}/fixed.pth")
    assert (code, "netz.pth does not exist; check the path; did you mean 'net.pth'?" in err) == (2, True)

    base = f"correct net.pth --model timm:test_resnet {data} --out {tmp_path}/fixed.pth --report {tmp_path}/r.html"
    code, out, err = said(capsys, f"{base} --dry-run")
    assert code == 0
    assert "the head in net.pth has 3 outputs, as with --num-classes 3" in err
    assert "the folders in alphabetical order are taken as its outputs" in err
    lines = out.splitlines()
    assert lines[0] == "Dry run: everything was read and checked, and nothing is written."
    assert lines[1] == "66 verified samples, 3 classes; 16 layers would be corrected."
    assert lines[2].startswith("Correction: 1 path of stages (refit) in 5 folds, about ")
    assert lines[3].startswith("Proof: 5 more corrections, each judged on a fifth of the samples, about ")
    written = ", ".join(f"{tmp_path}/{name}" for name in ("fixed.pth", "fixed.correction.safetensors", "r.html"))
    assert lines[-1] == f"Would write {written}."
    assert not list(tmp_path.iterdir())

    code, out, err = said(capsys, base)
    assert code == 0, err
    first, *others = out.splitlines()
    assert first.startswith("Improved: ")
    assert first.endswith("on 66 verified samples that no stage and no strength has seen.")
    assert len([line for line in others if line.startswith("  refit: strength")]) == 1
    assert "no change  loss" not in out
    assert others[-1].startswith(f"Wrote {tmp_path}/fixed.pth and {tmp_path}/fixed.correction.safetensors.")
    assert "zebra" in (tmp_path / "r.html").read_text(encoding="utf-8")
    scored = "--model timm:test_resnet --size 16 --data new --no-progress --json"
    found = [json.loads(said(capsys, f"score {path} {scored}")[1]) for path in ("net.pth", f"{tmp_path}/fixed.pth")]
    assert found[0]["accuracy"] < found[1]["accuracy"]


def test_folders_whose_order_is_not_that_of_the_outputs_are_found_out(photos, tmp_path, capsys):
    for given, name in zip(NAMES, ("yak", "bee", "auk"), strict=True):
        (tmp_path / "other" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "other" / name).symlink_to(photos / "verified" / given)
    words = f"correct {photos}/net.pth --model timm:test_resnet --size 16 --verified {tmp_path}/other --verified-from "
    words += f"unseen --drawn random --recipe refit --no-progress --no-check-inputs --out {tmp_path}/fixed.pth"
    code, _, err = said(capsys, words)
    assert (code, "seem to be in another order than the model's outputs" in err) == (5, True)
    code, _, err = said(capsys, f"{words} --no-check-labels")
    assert code == 5
    assert "give --classes with all class names in the order of the outputs, for example --classes auk,bee,yak" in err
    assert not (tmp_path / "fixed.pth").exists()


@pytest.fixture(scope="module")
def texts(vision, tmp_path_factory):
    """A trained text classifier of transformers, and a table with verified labels."""
    root = tmp_path_factory.mktemp("texts")
    tiny.text_model(root / "my-model", train=True)
    sentences, labels = tiny.sentences(80, 3)
    with (root / "Verified.CSV").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=";").writerows([("text", "label"), *zip(sentences, labels, strict=True)])
    return root


def test_somebody_with_a_folder_of_transformers_and_a_table(texts, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(texts)
    data = "--verified Verified.CSV --drawn random --recipe refit --no-progress"
    code, _, err = said(capsys, f"correct --model my-model {data} --verified-from unseen --out {tmp_path}/fixed")
    assert (code, "did you mean hf:./my-model?" in err) == (2, True)
    code, _, err = said(capsys, f"correct --model hf:./my-model {data} --out {tmp_path}/fixed")
    assert (code, "--verified needs --verified-from, one of unseen, training, trusted" in err) == (2, True)
    code, _, err = said(capsys, f"correct --model hf:./my-model {data} --verified-from unseeen --out {tmp_path}/fixed")
    assert (code, '"unseen"' in err) == (2, True)

    code, out, err = said(capsys, f"correct --model hf:./my-model {data} --verified-from unseen --out {tmp_path}/fixed")
    assert "Verified.CSV: columns are separated by semicolons" in err
    assert code in (0, 3), err
    assert (tmp_path / "fixed").is_dir() == (code == 0)
    first = out.splitlines()[0]
    assert first.startswith({0: "Improved: ", 3: ("No", "Not")[first.startswith("Not")]}[code])
    if code == 3:
        assert "Next: " in out
    assert "tokenizer of my-model" in out
