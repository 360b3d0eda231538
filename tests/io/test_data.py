"""Every form of data, written by the library that owns it or in its authors' layout, small."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from tests import tiny
from verifix import DataError, UsageError
from verifix.io.data.open import open_data
from verifix.io.data.preparation import Preparation
from verifix.io.data.preprocessing import prepare
from verifix.io.models import build_model
from verifix.io.options import DataOptions
from verifix.model.class_names import class_numbers
from verifix.model.samples import read_samples


def named(names, **options) -> tuple[DataOptions, Preparation]:
    """Options, and a preparation of images for a model with class names."""
    from dataclasses import replace

    settings = DataOptions(**options)
    return settings, replace(prepare(None, "", settings), class_names=None if names is None else tuple(names))


@pytest.fixture(scope="module")
def text_preparation(vision, tmp_path_factory) -> Preparation:
    folder = tiny.text_model(tmp_path_factory.mktemp("text"))
    return prepare(build_model(f"hf:{folder}"), f"hf:{folder}", DataOptions())


def labels_of(source) -> list[int]:
    return [int(y) for y in read_samples(source).labels]


def pixels_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


# Labels


def test_folders_named_by_numbers_are_numbers_and_not_their_order(tmp_path):
    for i in (0, 1, 2, 10, 11):  # sorted as text: 0, 1, 10, 11, 2; and 3 to 9 are not there
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "a.png").write_bytes(tiny.png("red"))
    assert labels_of(open_data(tmp_path, DataOptions())) == [0, 1, 10, 11, 2]


def test_folders_named_by_classes_take_the_models_order_and_may_be_missing(tmp_path):
    tiny.image_folder(tmp_path, 6)
    assert labels_of(open_data(tmp_path, *named(["red", "blue", "green"]))) == [1, 1, 2, 2, 0, 0]
    shutil.rmtree(tmp_path / "blue")
    assert labels_of(open_data(tmp_path, *named(["red", "blue", "green"]))) == [2, 2, 0, 0]
    assert labels_of(open_data(tmp_path, DataOptions(classes="green,blue,red"))) == [0, 0, 2, 2]


def test_names_are_compared_in_one_form_of_unicode(tmp_path):
    (tmp_path / "cafe\u0301").mkdir()
    (tmp_path / "cafe\u0301" / "a.png").write_bytes(tiny.png("red"))
    assert labels_of(open_data(tmp_path, *named(["tea", "caf\u00e9"]))) == [1]


def numbers(labels, classes=None, own=()) -> list[int]:
    return class_numbers(labels, classes, "x", lambda i: f"row {i}", own)


def test_labels_become_outputs_by_name():
    names = ["a", "b", "c"]
    assert numbers(["c", "a", " b "], names) == [2, 0, 1]
    assert numbers(["2", "0"], names) == [2, 0]
    assert numbers([2, 0]) == [2, 0]
    assert numbers([2, "a"], names) == [2, 0]
    assert numbers(["1", "0"], ["1", "0"]) == [0, 1]  # these are names here
    assert numbers(["10", "2"], ["1", "0"]) == [10, 2]
    assert numbers(["-100"]) == [-100]  # refused later, with the number of outputs
    for labels, match in (
        (["a", "d"], r"row 1 has the label 'd', which is not among the model's classes a, b, c; correct"),
        (["a", "B"], "row 1 has the label 'B'"),
        (["1", "a", "7"], "row 0 has the label '1'"),
        ([None], "row 0 has the label None"),
        ([True], "row 0 has the label True"),
        ([0, 1.5], "row 1 has the label 1.5"),
        ([""], "row 0 has the label ''"),
        ([1 << 70], "row 0 has the label"),
    ):
        with pytest.raises(DataError, match=match):
            numbers(labels, names)
    with pytest.raises(DataError, match="did you mean 'shirt'"):
        numbers(["shirtt"], ["shirt", "sock"])
    with pytest.raises(DataError, match="order of the model's outputs is not known; give --classes"):
        numbers(["a", "b"])
    with pytest.raises(DataError, match="name of both output 0 and 2"):
        numbers(["crane"], ["crane", "b", "crane"])
    assert numbers(["b"], ["crane", "b", "crane"]) == [1]


def test_names_of_the_data_are_mapped_to_those_of_the_model_and_a_change_is_said(capsys):
    assert numbers([0, 1, 2], ["c", "a", "b"], [["a", "b", "c"]]) == [1, 2, 0]
    assert "x are in another order than the model's; they were mapped by name" in capsys.readouterr().err
    assert numbers([0, 2], ["a", "z", "c"], [["a", "b", "c"]]) == [0, 2]
    assert capsys.readouterr().err == ""
    assert numbers([0, 2], None, [["a", "b", "c"]]) == [0, 2]
    assert "the model has none, so its class numbers are used" in capsys.readouterr().err
    assert numbers([1], ["dog", "cat"], [["n1", "n2"], ["cat", "dog"]]) == [0]
    assert numbers(["b", 0], ["a", "b"], [["b", "a"]]) == [1, 1]
    with pytest.raises(DataError, match="row 0 has the label 'b', which is not among"):
        numbers([1], ["a", "z", "c"], [["a", "b", "c"]])
    with pytest.raises(DataError, match="row 0 has the label 3, but x names 3 classes"):
        numbers([3], None, [["a", "b", "c"]])


# Tables


def write_table(path: Path, rows: list[dict]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_manifest_gives_its_verified_labels(tmp_path, capsys, suffix):
    tiny.image_folder(tmp_path / "pictures", 9)
    decided = [
        ("red", "", "ok"),  # the given label is right
        ("red", "green", "relabel"),
        ("red", "blue", "unsure"),
        ("red", "", "skip"),
        ("red", "blue", ""),
        ("red", "", ""),  # nobody has looked at it yet
        ("red", "red", "ok"),
        ("nonsense", "green", "relabel"),
        ("nonsense", "", "skip"),
    ]
    rows = [
        {
            "id": str(i),
            "file_name": f"pictures/{tiny.NAMES[i % 3]}/{i}.png",
            "given_label": given,
            "verified_label": verified,
            "status": status,
            "annotator": "ä, b",
            "time": "2026-01-01T00:00:00Z",
        }
        for i, (given, verified, status) in enumerate(decided)
    ]
    source = open_data(write_table(tmp_path / f"m{suffix}", rows), *named(["green", "red", "blue"]))
    assert [y for _, y in source.dataset] == [1, 0, 2, 1, 0]
    assert torch.equal(source.dataset[2][0], pixels_of(tiny.picture("green", 4)))
    note = capsys.readouterr().err
    assert note == (
        f"verifix: note: 4 of 9 rows of {tmp_path / f'm{suffix}'} are left out: 1 unsure, 2 skip, 1 not verified yet\n"
    )


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_table_of_file_names_or_texts_has_a_plain_label_column(tmp_path, text_preparation, suffix):
    tiny.image_folder(tmp_path, 6)
    rows = [{"file_name": f"{tiny.NAMES[i % 3]}/{i}.png", "label": 2 - i % 3, "other": "blue"} for i in range(6)]
    path = write_table(tmp_path / f"t{suffix}", rows)
    assert labels_of(open_data(path, DataOptions())) == [2, 1, 0, 2, 1, 0]
    assert labels_of(open_data(path, *named(tiny.NAMES, label_column="other"))) == [2] * 6
    (tmp_path / "moved").mkdir()
    elsewhere = write_table(
        tmp_path / "moved" / f"t{suffix}", [{"where": row["file_name"], "label": 0} for row in rows]
    )
    options = DataOptions(image_column="where", image_root=str(tmp_path))
    assert torch.equal(open_data(elsewhere, options).dataset[3][0], pixels_of(tiny.picture("red", 3)))
    texts, labels = tiny.sentences(6, 0)
    rows = [{"label": y, "text": text, "review": text[::-1]} for text, y in zip(texts, labels, strict=True)]
    path = write_table(tmp_path / f"x{suffix}", rows)
    source = open_data(path, DataOptions(), text_preparation)
    assert source.dataset[1]["labels"] == 1
    assert torch.equal(source.dataset[1]["input_ids"], text_preparation.tokenize([texts[1]])["input_ids"][0])
    reversed_ = open_data(path, DataOptions(text_column="review"), text_preparation).dataset[1]["input_ids"]
    assert torch.equal(reversed_, text_preparation.tokenize([texts[1][::-1]])["input_ids"][0])


def test_a_csv_may_have_long_texts_line_breaks_and_a_mark_at_its_beginning(tmp_path, text_preparation):
    text = "good\n" * 40_000
    (tmp_path / "a.csv").write_text(f'text,label\n"{text}",pos\n"",neg\n', encoding="utf-8-sig")
    with pytest.raises(DataError, match=r"line 40003 of .*a\.csv has the text ''"):
        open_data(tmp_path / "a.csv", DataOptions(), text_preparation)
    assert csv.field_size_limit() == 131072
    (tmp_path / "a.csv").write_text(f'text,label\n"{text}",pos\n', encoding="utf-8-sig")
    assert len(open_data(tmp_path / "a.csv", DataOptions(), text_preparation).dataset[0]["input_ids"]) == 16


def test_texts_become_batches_with_the_tokenizers_padding(tmp_path, text_preparation):
    rows = [{"text": text, "label": "neg"} for text in ("good film", "the film is very bad", "dull " * 40)]
    source = open_data(write_table(tmp_path / "a.jsonl", rows), DataOptions(), text_preparation)
    assert [len(item["input_ids"]) for item in source.dataset] == [4, 7, 16]
    batch = next(iter(DataLoader(source.dataset, 3, collate_fn=source.collate)))
    expected = text_preparation.tokenize([row["text"] for row in rows])
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert all(torch.equal(batch[key], expected[key]) for key in expected)
    assert batch["labels"].tolist() == [0, 0, 0]
    samples = read_samples(source)
    first = next(samples.batches([1, 0], 2))
    assert torch.equal(first.inputs["input_ids"], expected["input_ids"][[1, 0], :7])


def test_images_in_parquet_are_read_a_group_of_rows_at_a_time(tmp_path):
    rows = [{"image": {"bytes": tiny.png("red", i), "path": None}, "label": i} for i in range(10)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=3)
    data = open_data(tmp_path / "a.parquet", DataOptions()).dataset
    for i in (9, 0, 3, 2, 5, 8, 1):
        x, y = data[i]
        assert torch.equal(x, pixels_of(tiny.picture("red", i)))
        assert y == i
    raw = pa.table({"picture": [row["image"]["bytes"] for row in rows], "label": list(range(10))})
    pq.write_table(raw, tmp_path / "b.parquet")
    data = open_data(tmp_path / "b.parquet", DataOptions(image_column="picture")).dataset
    assert torch.equal(data[4][0], pixels_of(tiny.picture("red", 4)))


def test_manifests_of_embedded_images_keep_row_and_label_together(tmp_path):
    status = ["ok", "skip", "ok", "unsure", "ok"]
    rows = [
        {"image": {"bytes": tiny.png("red", i), "path": None}, "given_label": i, "verified_label": None, "status": s}
        for i, s in enumerate(status)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = open_data(tmp_path / "a.parquet", DataOptions()).dataset
    assert [y for _, y in data] == [0, 2, 4]
    assert torch.equal(data[1][0], pixels_of(tiny.picture("red", 2)))


# The Hugging Face formats


def saved(path: Path, names=tiny.NAMES, n: int = 6):
    import datasets

    images = [tiny.picture(tiny.NAMES[i % 3], i, (10, 14)) for i in range(n)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))})
    values = {"image": images, "label": [list(names).index(tiny.NAMES[i % 3]) for i in range(n)]}
    data = datasets.Dataset.from_dict(values, features)
    tiny.quietly(data.save_to_disk, path)
    return data


def test_a_saved_dataset_is_read_by_its_names(vision, tmp_path, capsys):
    saved(tmp_path / "a")
    assert labels_of(open_data(tmp_path / "a", *named(tiny.NAMES))) == [0, 1, 2, 0, 1, 2]
    assert capsys.readouterr().err == ""
    saved(tmp_path / "b", names=["blue", "red", "green"])
    source = open_data(tmp_path / "b", *named(tiny.NAMES))
    assert labels_of(source) == [0, 1, 2, 0, 1, 2]
    assert "were mapped by name" in capsys.readouterr().err
    assert torch.equal(source.dataset[4][0], pixels_of(tiny.picture("green", 4, (10, 14))))
    assert labels_of(open_data(tmp_path / "b", DataOptions())) == [1, 2, 0, 1, 2, 0]
    assert "its class numbers are used" in capsys.readouterr().err


def test_saved_images_are_turned_as_their_library_turns_them(vision, tmp_path):
    import datasets

    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    tiny.picture("red", 0, (8, 12)).save(tmp_path / "turned.png", exif=exif)
    features = datasets.Features({"picture": datasets.Image(), "labels": datasets.Value("int64")})
    data = datasets.Dataset.from_dict({"picture": [str(tmp_path / "turned.png")], "labels": [0]}, features)
    tiny.quietly(data.save_to_disk, tmp_path / "a")
    x, _ = open_data(tmp_path / "a", DataOptions()).dataset[0]
    assert torch.equal(x, pixels_of(data[0]["picture"]))
    assert x.shape == (3, 12, 8)


def test_splits_are_chosen_by_name(vision, tmp_path):
    import datasets

    data = saved(tmp_path / "one")
    tiny.quietly(datasets.DatasetDict({"train": data, "test": data.select([2])}).save_to_disk, tmp_path / "two")
    tiny.quietly(datasets.DatasetDict({"test": data.select([1, 2])}).save_to_disk, tmp_path / "single")
    assert labels_of(open_data(f"{tmp_path / 'two'}:test", *named(tiny.NAMES))) == [2]
    assert labels_of(open_data(tmp_path / "single", *named(tiny.NAMES))) == [1, 2]
    for path, match in (
        (tmp_path / "two", "has the splits train, test; choose one as .*two:train"),
        (f"{tmp_path / 'two'}:dev", "no split 'dev'; it has train, test"),
        (f"{tmp_path / 'one'}:train", "has no splits; give it without :train"),
    ):
        with pytest.raises(UsageError, match=match):
            open_data(path, DataOptions())


def test_saved_texts_are_read(vision, tmp_path, text_preparation):
    import datasets

    texts, labels = tiny.sentences(6, 0)
    features = datasets.Features(
        {"review": datasets.Value("string"), "label": datasets.ClassLabel(names=["pos", "neg"])}
    )
    data = datasets.Dataset.from_dict({"review": texts, "label": labels}, features)
    tiny.quietly(data.save_to_disk, tmp_path / "a")
    source = open_data(tmp_path / "a", DataOptions(), text_preparation)
    assert labels_of(source) == [0, 1] * 3
    assert torch.equal(source.dataset[3]["input_ids"], text_preparation.tokenize([texts[3]])["input_ids"][0])
    data.to_parquet(tmp_path / "a.parquet")  # its metadata has the class names
    options = DataOptions(text_column="review")
    assert labels_of(open_data(tmp_path / "a.parquet", options, text_preparation)) == [0, 1] * 3


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_image_folder_with_metadata_is_read_by_it(tmp_path, suffix):
    tiny.image_folder(tmp_path / "train", 6)
    rows = [{"file_name": f"{tiny.NAMES[i % 3]}/{i}.png", "label": tiny.NAMES[i % 3]} for i in (5, 0, 1)]
    write_table(tmp_path / "train" / f"metadata{suffix}", rows)
    source = open_data(tmp_path / "train", *named(["blue", "green", "red"]))
    assert labels_of(source) == [0, 2, 1]
    assert torch.equal(source.dataset[0][0], pixels_of(tiny.picture("blue", 5)))


# Shards


def test_shards_are_read_by_index(vision, tmp_path):
    pattern = tiny.write_shards(tmp_path)
    data = open_data(pattern, DataOptions()).dataset
    assert [y for _, y in data] == [0, 1, 2] * 4
    for i in (11, 0, 7):
        assert torch.equal(data[i][0], pixels_of(tiny.picture(tiny.NAMES[i % 3], i)))
    assert data.place(7) == f"0007.png in {tmp_path / 's-001.tar'}"
    assert len(open_data(tmp_path / "s-001.tar", DataOptions()).dataset) == 6


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves it to the garbage collector
def test_labels_of_shards_may_be_names_or_stand_in_json(vision, tmp_path, text_preparation):
    import webdataset

    def write(name: str, **kinds) -> str:
        (tmp_path / name).mkdir()
        return tiny.write_shards(tmp_path / name, 1, 3, **kinds)

    def image(i: int) -> bytes:
        return tiny.png(tiny.NAMES[i], i)

    names = write("names", jpg=lambda i: tiny.picture("red", i), cls=lambda i: tiny.NAMES[i])
    assert labels_of(open_data(names, *named(["blue", "green", "red"]))) == [2, 1, 0]
    plain = write("json", png=image, json=lambda i: {"label": 2 - i, "class": tiny.NAMES[i]})
    assert labels_of(open_data(plain, DataOptions())) == [2, 1, 0]
    assert labels_of(open_data(plain, *named(tiny.NAMES, label_column="class"))) == [0, 1, 2]
    text = write("text", txt=lambda i: "good film", cls=lambda i: "pos")
    assert labels_of(open_data(text, DataOptions(), text_preparation)) == [1, 1, 1]
    keys = [sample["__key__"] for sample in webdataset.WebDataset(plain, shardshuffle=False)]
    assert keys == [open_data(plain, DataOptions()).dataset.place(i).split(".")[0] for i in range(3)]


# Sets with labels that are wrong by nature


def test_webvision_is_read_in_its_layout(tmp_path, capsys):
    root = tiny.write_webvision(tmp_path)

    def read(name: str, names=None):
        data = open_data(name, *named(names)).dataset
        assert torch.equal(data[0][0], pixels_of(tiny.picture("red", 1)))
        return [y for _, y in data]

    assert read(f"webvision:{root}:train_google") == [0, 49, 50, 59]
    assert read(f"webvision:{root}:train_flickr") == [1, 58]
    assert read(f"webvision:{root}:val") == read(f"webvision:{root}") == [49, 3, 51]
    assert read(f"mini-webvision:{root}:train_google") == [0, 49]
    assert read(f"mini-webvision:{root}") == [49, 3]
    capsys.readouterr()
    for naming in ("n{:08d}", "thing{}", "thing{0}, other thing{0}"):
        names = [naming.format(i) for i in reversed(range(60))]
        assert read(f"webvision:{root}:val", names) == [10, 56, 8]
        assert "mapped by name" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"write mini-webvision:DIR:train_google\|val"):
        read(f"mini-webvision:{root}:train_flickr")


@pytest.mark.parametrize("annotations", [True, False])
def test_clothing1m_is_read_in_its_layout(tmp_path, annotations):
    root = tiny.write_clothing(tmp_path, annotations)

    def read(split: str, names=None) -> list[int]:
        return labels_of(open_data(f"clothing1m:{root}:{split}", *named(names)))

    assert read("noisy_train") == [5, 6, 7, 8]
    assert read("clean_train") == [3, 4, 5]
    assert read("clean_val") == [6, 7]
    assert read("clean_test", [f"Cloth {13 - i}" for i in range(14)]) == [5, 4]


@pytest.mark.parametrize("kind", ["python", "binary"])
@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_n_joins_images_and_human_labels(tmp_path, kind, hundred):
    pixels = tiny.write_cifar(tmp_path, kind, 12, hundred)
    name, keys, classes = ("cifar100n", ["noisy_label"], 100) if hundred else ("cifar10n", ["aggre_label"], 10)
    clean = open_data(f"{name}:{tmp_path}:clean_label", DataOptions()).dataset
    true = [y for _, y in clean]
    for i in range(12):
        assert torch.equal(clean[i][0], torch.from_numpy(pixels[i].copy()).permute(2, 0, 1) / 255)
    noisy = open_data(f"{name}:{tmp_path}:{keys[0]}", DataOptions())
    assert labels_of(noisy) == [(y + 1) % classes for y in true]
    turned = [f"class{classes - 1 - i}" for i in range(classes)]
    assert labels_of(open_data(f"{name}:{tmp_path}:clean_label", *named(turned))) == [classes - 1 - y for y in true]
    if not hundred:
        third = open_data(f"{name}:{tmp_path}:random_label3", DataOptions())
        assert labels_of(third) == [(y + 5) % 10 for y in true]
    with pytest.raises(UsageError, match=rf"write {name}:DIR:clean_label"):
        open_data(f"{name}:{tmp_path}:worst", DataOptions())


def test_human_labels_saved_by_an_older_numpy_are_read(tmp_path):
    """The authors' files name numpy's modules as they were called before version 2."""
    tiny.write_cifar(tmp_path)
    path = tmp_path / "CIFAR-10_human.pt"
    import zipfile

    with zipfile.ZipFile(path) as old:
        files = {info.filename: old.read(info) for info in old.infolist()}
    renamed = {name: data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray") for name, data in files.items()}
    assert renamed != files
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as new:
        for name, data in renamed.items():
            new.writestr(name, data)
    assert len(open_data(f"cifar10n:{tmp_path}:worse_label", DataOptions()).dataset) == 12
