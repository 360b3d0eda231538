"""Data that is broken or does not fit: one line that names the file and what to do, and nothing written."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tests import tiny
from verifix.cli.main import main

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
"""


@pytest.fixture(scope="module")
def models(vision, tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    (root / "net.py").write_text(NET)
    namespace: dict = {}
    exec(NET, namespace)
    save_file(namespace["build"]().state_dict(), root / "net.safetensors")
    tiny.text_model(root / "text")
    tiny.image_model(root / "image")
    return root


class Evil:
    def __reduce__(self):
        return (exec, ("open('executed', 'w')",))


def rows(n: int = 4, **changes) -> list[dict]:
    return [{"file_name": f"{i}.png", "label": tiny.NAMES[i % 3]} | changes for i in range(n)]


def csv_of(content: list[dict] | str | bytes, name: str = "m.csv", pictures: int = 6) -> Callable[[Path], str]:
    """Write a table beside images, and return its path."""

    def make(folder: Path) -> str:
        for i in range(pictures):
            (folder / f"{i}.png").write_bytes(tiny.png(tiny.NAMES[i % 3], i))
        if isinstance(content, list):
            lines = [",".join(content[0]), *(",".join(map(str, row.values())) for row in content)]
            data = "\n".join(lines).encode()
        else:
            data = content if isinstance(content, bytes) else content.encode()
        (folder / name).write_bytes(data)
        return str(folder / name)

    return make


def changed(prepare: Callable[[Path], object], name: str, change: Callable[[Path], object]) -> Callable[[Path], str]:
    """Write a set, change one of its files, and return how it is named."""

    def make(folder: Path) -> str:
        prepare(folder / "set")
        change(folder / "set")
        return name.format(folder / "set")

    return make


def replace(file: str, old: str, new: str, count: int = -1) -> Callable[[Path], object]:
    def change(root: Path) -> object:
        text = (root / file).read_text()
        assert old in text
        return (root / file).write_text(text.replace(old, new, count))

    return change


def remove(file: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / file) if (root / file).is_dir() else (root / file).unlink()


def shards(change: Callable[[Path], object] = lambda path: None, **kinds) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        (folder / "set").mkdir()
        pattern = tiny.write_shards(folder / "set", 1, 4, **kinds)
        change(folder / "set" / "s-000.tar")
        return pattern

    return make


def cut(size: int) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(path.read_bytes()[:size])


def cifar(root: Path) -> None:
    root.mkdir()
    tiny.write_cifar(root)


def human(**changes) -> Callable[[Path], object]:
    return lambda root: tiny.write_human(
        root, torch.load(root / "CIFAR-10_human.pt", weights_only=False)["clean_label"], **changes
    )


def saved(splits: bool = False, names=tiny.NAMES, **columns) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        import datasets

        values = columns or {"image": [tiny.picture("red", i) for i in range(2)], "label": [0, 1]}
        kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
        features = {name: kinds.get(name, datasets.Value("string")) for name in values}
        data = datasets.Dataset.from_dict(values, datasets.Features(features))
        whole = datasets.DatasetDict({"train": data, "test": data}) if splits else data
        tiny.quietly(whole.save_to_disk, folder / "set")
        return str(folder / "set")

    return make


def damaged(make: Callable[[Path], str], pattern: str) -> Callable[[Path], str]:
    def both(folder: Path) -> str:
        path = make(folder)
        for file in Path(path).glob(pattern):
            file.write_bytes(b"nothing")
        return path

    return both


def parquet(values: dict) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        pq.write_table(pa.table(values), folder / "m.parquet")
        return str(folder / "m.parquet")

    return make


def npz(**arrays) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        np.savez(folder / "a.npz", **arrays)
        return str(folder / "a.npz")

    return make


def folder_of(**files: bytes) -> Callable[[Path], str]:
    def make(folder: Path) -> str:
        for name, content in files.items():
            (folder / "set" / name).mkdir(parents=True)
            (folder / "set" / name / "a.png").write_bytes(content)
        return str(folder / "set")

    return make


def encoded(*contents: bytes) -> list[dict]:
    return [{"bytes": content, "path": None} for content in contents]


TEXTS = "text,label\ngood film,pos\nbad film,neg\n"
MANIFEST = "file_name,given_label,verified_label,status\n"
PNG = tiny.png("red")

CASES: dict[str, tuple] = {
    # name: (data, model, exit code, file in the message, remedy in the message, further flags)
    "empty csv": (csv_of(""), "image", 5, "m.csv is empty", "must name the columns"),
    "only a header": (csv_of("file_name,label\n"), "image", 5, "m.csv has no row with a", "verify some samples first"),
    "no content column": (csv_of([{"picture": 1, "label": 2}]), "image", 5, "m.csv has no column", "--image-column"),
    "no label column": (
        csv_of([{"file_name": "0.png", "y": 2}]),
        "image",
        5,
        "m.csv has no column 'label'",
        "--label-column",
    ),
    "column twice": (
        csv_of("label,file_name,label\n1,0.png,2\n"),
        "image",
        5,
        "m.csv has the column 'label' twice",
        "once",
    ),
    "unknown status": (csv_of(MANIFEST + "0.png,red,,maybe\n"), "image", 5, "line 2 of", "ok, relabel, unsure, skip"),
    "relabel without a label": (
        csv_of(MANIFEST + "0.png,red,,ok\n1.png,red,,relabel\n"),
        "image",
        5,
        "line 3 of",
        "or the status 'skip'",
    ),
    "ok without a label": (csv_of(MANIFEST + "0.png,,,ok\n"), "image", 5, "line 2 of", "fill given_label"),
    "ok and contradicted": (csv_of(MANIFEST + "0.png,red,blue,ok\n"), "image", 5, "line 2 of", "the status 'relabel'"),
    "nothing verified": (csv_of(MANIFEST + "0.png,red,,skip\n"), "image", 5, "m.csv has no row with a", "verify some"),
    "unknown class": (
        csv_of([*rows(), {"file_name": "4.png", "label": "purple"}]),
        "image",
        5,
        "line 6 of",
        "correct the label, or check --classes",
    ),
    "names without classes": (csv_of(rows()), "net", 5, "m.csv are names (blue, green, red)", "give --classes"),
    "classes lack one": (csv_of(rows()), "net", 5, "line 3 of", "check --classes", "--classes", "red,blue"),
    "label out of range": (
        csv_of("file_name,label\n0.png,0\n1.png,3\n"),
        "image",
        5,
        "sample 1 has label 3",
        "labels go from 0 to 2",
    ),
    "label -100": (
        csv_of("file_name,label\n0.png,-100\n1.png,1\n"),
        "image",
        5,
        "sample 0 has label -100",
        "from 0 to 2",
    ),
    "decimal label": (csv_of("file_name,label\n0.png,1.0\n1.png,1.5\n"), "image", 5, "line 3 of", "correct the label"),
    "empty label": (
        csv_of("file_name,label\n0.png,\n"),
        "image",
        5,
        "line 2 of",
        "class indices (integers) or class names",
    ),
    "values missing": (csv_of("file_name,label\n0.png,red\n1.png\n"), "image", 5, "line 3 of", "correct it"),
    "open quotation mark": (csv_of('file_name,label\n"0.png,red\n'), "image", 5, "m.csv is not CSV", "correct it"),
    "csv of latin-1": (
        csv_of("file_name,label\n0.png,red\n1.png,café\n".encode("latin-1")),
        "image",
        5,
        "line 3 of",
        "save the file with the encoding UTF-8",
    ),
    "missing image": (
        csv_of(rows(8)),
        "image",
        5,
        "line 8 of",
        "6.png is not a file; correct the name, or give --image-root",
    ),
    "path out of the folder": (csv_of(rows(2, file_name="../../secret.png")), "image", 5, "line 2 of", "outside of"),
    "absolute path": (csv_of(rows(2, file_name="/etc/passwd")), "image", 5, "line 2 of", "--image-root"),
    "empty file name": (csv_of("file_name,label\n,red\n"), "image", 5, "line 2 of", "leave the sample out"),
    "root is no folder": (
        csv_of(rows()),
        "image",
        2,
        "nowhere is not a folder",
        "--image-root is",
        "--image-root",
        "nowhere",
    ),
    "broken json line": (
        csv_of('{"file_name": "0.png", "label": 0}\n\n{"file_name": \n', "m.jsonl"),
        "image",
        5,
        "line 3 of",
        "correct it",
    ),
    "json line is a list": (csv_of('["0.png", 0]\n', "m.jsonl"), "image", 5, "line 1 of", "one object"),
    "json label is a list": (
        csv_of('{"file_name": "0.png", "label": [0]}\n', "m.jsonl"),
        "image",
        5,
        "line 1 of",
        "class indices",
    ),
    "json label is true": (
        csv_of('{"file_name": "0.png", "label": true}\n', "m.jsonl"),
        "image",
        5,
        "line 1 of",
        "class indices",
    ),
    "metadata without labels": (
        changed(
            lambda root: (root.mkdir(), csv_of("file_name\n0.png\n", "metadata.csv")(root)), "{}", lambda root: None
        ),
        "image",
        5,
        "metadata.csv has no column 'label'",
        "--label-column",
    ),
    "truncated image": (
        folder_of(red=PNG[:90], blue=PNG),
        "image",
        5,
        "red/a.png is not a readable image",
        "replace it or leave it out",
    ),
    "image is text": (
        folder_of(red=b"not a picture"),
        "image",
        5,
        "red/a.png is not in a known image format",
        "replace it",
    ),
    "images of different sizes": (
        folder_of(red=PNG, blue=tiny.png("blue", 0, (9, 9))),
        "net",
        5,
        "red/a.png",
        "give --size",
        "--classes",
        "red,green,blue",
        "--batch-size",
        "1",
    ),
    "folder of an unknown class": (
        folder_of(red=PNG, cat=PNG),
        "image",
        5,
        "set/cat has the label 'cat'",
        "correct the label",
    ),
    "folder of nothing": (
        changed(lambda root: root.mkdir(), "{}", lambda root: None),
        "image",
        5,
        "set has no subfolders",
        "metadata.csv",
    ),
    "texts for an image model": (csv_of(TEXTS), "image", 5, "m.csv holds texts", "or a text model"),
    "images for a text model": (
        folder_of(red=PNG),
        "text",
        5,
        "set holds images",
        "give a table with a column of texts",
    ),
    "empty text": (csv_of("text,label\ngood,pos\n,neg\n"), "text", 5, "line 3 of", "leave the sample out"),
    "both columns": (
        csv_of(TEXTS),
        "text",
        2,
        "--image-column and --text-column are both given",
        "give one",
        "--image-column",
        "text",
        "--text-column",
        "text",
    ),
    "label column is the text": (
        csv_of(TEXTS),
        "text",
        2,
        "m.csv; name the column of the labels",
        "name the",
        "--label-column",
        "text",
    ),
    "max length of images": (
        csv_of(TEXTS),
        "text",
        2,
        "the model has 16 positions",
        "give 16 or less",
        "--max-length",
        "99",
    ),
    "tar is cut": (shards(cut(3000)), "image", 5, "s-000.tar is not a readable tar file", "check that it is complete"),
    "tar is cut between samples": (
        shards(cut(4 * 1024), cls=lambda i: 1, png=lambda i: b"x" * 10),
        "image",
        5,
        "no end mark",
        "check that it is complete",
    ),
    "tar is text": (
        shards(lambda path: path.write_text("nothing " * 200)),
        "image",
        5,
        "s-000.tar is not a readable tar",
        "check",
    ),
    "tar without labels": (shards(png=lambda i: PNG), "image", 5, "0000.png in", "add cls, or json with a label"),
    "tar without images": (
        shards(cls=lambda i: 1),
        "image",
        5,
        "holds only cls",
        "needs an image (jpg, png, …) or txt",
    ),
    "tar json without label": (
        shards(png=lambda i: PNG, json=lambda i: {"y": 1}),
        "image",
        5,
        "0000.png in",
        "--label-column",
    ),
    "tar of an unknown class": (
        shards(png=lambda i: PNG, cls=lambda i: "cat"),
        "image",
        5,
        "0000.png in",
        "correct the label",
    ),
    "shard missing": (
        lambda folder: shards()(folder).replace("000..000", "000..001"),
        "image",
        2,
        "s-001.tar does not exist",
        "check the path of the shards",
    ),
    "shards by a command": (
        lambda folder: "pipe:touch executed; cat {a,b}.tar",
        "image",
        2,
        "does not exist",
        "only local files are read",
    ),
    "split of no dataset": (
        lambda folder: folder_of(red=PNG)(folder) + ":train",
        "image",
        2,
        "set has no dataset_dict.json",
        "only folders of datasets.save_to_disk",
    ),
    "dataset without a split": (saved(splits=True), "image", 2, "set has the splits train, test", "choose one as"),
    "dataset with other names": (
        saved(names=["cat", "dog"]),
        "image",
        5,
        "row 0 of",
        "not among the model's classes red, green, blue",
    ),
    "dataset without labels": (
        saved(image=[tiny.picture("red", 0)]),
        "image",
        5,
        "set has no column 'label'",
        "--label-column",
    ),
    "dataset with two texts": (
        saved(a=["x"], b=["y"], label=[0]),
        "text",
        5,
        "set has the columns a, b, label",
        "--text-column",
    ),
    "dataset is damaged": (
        damaged(saved(), "*.arrow"),
        "image",
        5,
        "set is not a readable folder of datasets.save_to_disk",
        "save it again",
    ),
    "parquet with a null image": (
        parquet({"image": encoded(PNG, None), "label": [0, 1]}),
        "image",
        5,
        "the image in row 1 of",
        "replace it or leave it out",
    ),
    "parquet image column of numbers": (
        parquet({"image": [1, 2], "label": [0, 1]}),
        "image",
        5,
        "m.parquet is int64",
        "--image-column",
    ),
    "npz of unknown names": (
        npz(x=np.zeros((3, 3, 16, 16), np.float32), y=np.array(["red", "cat", "blue"])),
        "image",
        5,
        "label 1 of",
        "correct the label",
    ),
    "npz of odd channels": (
        npz(x=np.zeros((3, 16, 16, 4), np.uint8), y=np.zeros(3, int)),
        "image",
        5,
        "a.npz has 8-bit inputs",
        "3 channels either last or first",
    ),
    "webvision without a list": (
        changed(tiny.write_webvision, "webvision:{}:train_google", remove("info/train_filelist_google.txt")),
        "net",
        5,
        "train_filelist_google.txt is missing",
        "get WebVision 1.0 from its authors",
    ),
    "webvision without an image": (
        changed(tiny.write_webvision, "mini-webvision:{}:val", remove("val_images_256/val000003.jpg")),
        "net",
        5,
        "val000003.jpg is missing",
        "unpack all images",
    ),
    "webvision with a broken list": (
        changed(tiny.write_webvision, "webvision:{}", replace("info/val_filelist.txt", " 3\n", " three\n")),
        "net",
        5,
        "line 2 of",
        "a file name, a space and a number",
    ),
    "webvision with a path out of it": (
        changed(tiny.write_webvision, "webvision:{}", replace("info/val_filelist.txt", "val000003", "../../x")),
        "net",
        5,
        "val_filelist.txt lists ../../x",
        "get the list from the authors",
    ),
    "webvision of nowhere": (
        lambda folder: "webvision:nowhere:val",
        "net",
        2,
        "nowhere is not a folder",
        "write webvision:DIR:train_google",
    ),
    "clothing1m key without label": (
        changed(
            tiny.write_clothing,
            "clothing1m:{}:clean_val",
            replace("annotations/clean_label_kv.txt", "images/0/06/6.jpg 6\n", ""),
        ),
        "net",
        5,
        "has no label of images/0/06/6.jpg",
        "ask its authors",
    ),
    "clothing1m without images": (
        changed(tiny.write_clothing, "clothing1m:{}:clean_val", remove("images")),
        "net",
        5,
        "set/images is missing",
        "ask its authors",
    ),
    "clothing1m without a list named": (
        changed(tiny.write_clothing, "clothing1m:{}", lambda root: None),
        "net",
        2,
        "does not say what to read",
        "noisy_train|clean_train",
    ),
    "cifar10n without images": (
        changed(cifar, "cifar10n:{}:worse_label", remove("cifar-10-batches-py")),
        "net",
        5,
        "cifar-10-batches-py is missing",
        "get the images from",
    ),
    "cifar10n without a batch": (
        changed(cifar, "cifar10n:{}:worse_label", remove("cifar-10-batches-py/data_batch_3")),
        "net",
        5,
        "data_batch_3 is missing",
        "unpack them there",
    ),
    "cifar10n without labels": (
        changed(cifar, "cifar10n:{}:worse_label", remove("CIFAR-10_human.pt")),
        "net",
        5,
        "CIFAR-10_human.pt is missing",
        "noisylabels.com",
    ),
    "cifar10n of another length": (
        changed(cifar, "cifar10n:{}:worse_label", human(worse_label=np.zeros(11, np.int64))),
        "net",
        5,
        "worse_label of",
        "one whole number per image",
    ),
    "cifar10n in another order": (
        changed(cifar, "cifar10n:{}:worse_label", human(clean_label=np.arange(12) % 10)),
        "net",
        5,
        "differs from the images' own labels",
        "get the images from",
    ),
    "cifar10n labels that run": (
        changed(
            cifar,
            "cifar10n:{}:worse_label",
            lambda root: torch.save({"clean_label": Evil()}, root / "CIFAR-10_human.pt"),
        ),
        "net",
        5,
        "CIFAR-10_human.pt cannot be read",
        "get the labels from",
    ),
    "cifar batch that runs": (
        changed(
            cifar,
            "cifar10n:{}:worse_label",
            lambda root: (root / "cifar-10-batches-py/data_batch_2").write_bytes(pickle.dumps({"data": Evil()})),
        ),
        "net",
        5,
        "data_batch_2 is not a readable batch of CIFAR (it asks for builtins.exec",
        "get the images from",
    ),
    "cifar batch is cut": (
        changed(cifar, "cifar10n:{}:worse_label", lambda root: cut(500)(root / "cifar-10-batches-py/data_batch_1")),
        "net",
        5,
        "data_batch_1 is not a readable batch",
        "get the images from",
    ),
}


def arguments(models: Path, model: str, data: str, out: Path) -> list[str]:
    named = [f"hf:{models / model}"]
    if model == "net":
        named = [f"py:{models / 'net.py'}:build", "--checkpoint", str(models / "net.safetensors")]
        out = out.with_suffix(".safetensors")
    fixed = ["--verified-from", "unseen", "--alpha", "10", "--proof", "none", "--out", str(out), "--no-progress"]
    fixed.append("--no-check-inputs")  # the networks are not trained
    return ["correct", "--model", *named, "--verified", data, *fixed]


@pytest.mark.parametrize("name", CASES)
def test_malformed_data_gets_one_line_and_nothing_is_written(name, models, tmp_path, capsys, monkeypatch):
    make, model, code, what, remedy, *flags = CASES[name]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    data = make(tmp_path / "data")
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    found = main([*arguments(models, model, data, tmp_path / "fixed"), *flags])
    out, err = capsys.readouterr()
    *notes, error = err.splitlines()
    assert found == code, err
    assert out == ""
    assert error.startswith("verifix: error: ")
    assert all(line.startswith("verifix: note: ") for line in notes)
    assert what in error
    assert remedy in error
    assert "Traceback" not in err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_same_data_in_order_is_accepted(models, tmp_path, capsys):
    """What the cases above break works when it is whole, or they would prove nothing."""
    good = {
        "csv": (csv_of(rows(6)), "image"),
        "texts": (csv_of(TEXTS), "text"),
        "folder": (folder_of(red=PNG, blue=tiny.png("blue")), "image"),
        "shards": (shards(), "image"),
        "saved": (saved(), "image"),
        "webvision": (changed(tiny.write_webvision, "mini-webvision:{}:val", lambda root: None), "net"),
        "clothing": (changed(tiny.write_clothing, "clothing1m:{}:clean_val", lambda root: None), "net"),
        "cifar": (changed(cifar, "cifar10n:{}:worse_label", lambda root: None), "net"),
    }
    for name, (make, model) in good.items():
        (tmp_path / name).mkdir()
        data = make(tmp_path / name)
        code = main(arguments(models, model, data, tmp_path / f"{name}-fixed"))
        err = capsys.readouterr().err
        wide = model == "net" and ("labels go from 0 to 2" in err)  # this network has fewer classes than the set
        assert code == 0 or wide, (name, err)


def test_there_are_cases_enough():
    assert len(CASES) >= 24
