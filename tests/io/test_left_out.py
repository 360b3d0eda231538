"""What is not read is counted and named; images and class numbers are read alike in every container."""

from __future__ import annotations

import io
import json
import tarfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests import tiny
from tests.io.test_data import labels_of, numbers, pixels_of, write_table
from tests.io.test_malformed_data import NET
from verifix import DataError, UsageError
from verifix.cli.main import main
from verifix.evaluation.predictions import as_labels
from verifix.io.data.images import image_suffixes
from verifix.io.data.open import open_data
from verifix.io.data.prediction_files import read_labels, read_predictions
from verifix.io.options import DataOptions

DEFAULT = DataOptions()


def notes_of(capsys) -> list[str]:
    return [line.removeprefix("verifix: note: ") for line in capsys.readouterr().err.splitlines()]


def class_folder(root: Path, **files: str) -> Path:
    """Write one image of each name into the class folder 0, in the format named beside it."""
    (root / "0").mkdir(parents=True)
    for i, (name, form) in enumerate(files.items()):
        tiny.picture("red", i).save(root / "0" / name, form)
    return root


# Suffixes


@pytest.mark.parametrize(
    ("suffix", "form"),
    [("jfif", "JPEG"), ("jpe", "JPEG"), ("JPG", "JPEG"), ("apng", "PNG"), ("jp2", "JPEG2000"), ("tga", "TGA"),
     ("pnm", "PPM"), ("ico", "ICO"), ("dib", "DIB"), ("PnG", "PNG")],
)  # fmt: skip
def test_images_of_every_suffix_of_their_format_are_read(tmp_path, capsys, suffix, form):
    class_folder(tmp_path, **{"a.png": "PNG", f"b.{suffix}": form})
    data = open_data(tmp_path, DEFAULT).dataset
    assert [y for _, y in data] == [0, 0]
    with Image.open(tmp_path / "0" / f"b.{suffix}") as image:
        assert torch.equal(data[1][0], pixels_of(image))
    assert notes_of(capsys) == []


def test_the_suffixes_are_those_of_the_formats_that_are_decoded():
    assert {".jfif", ".jpe", ".apng", ".jp2", ".tga", ".webp", ".pbm"} <= set(image_suffixes())
    assert not {".eps", ".pdf", ".mpo", ".psd"} & set(image_suffixes())
    assert image_suffixes()[:3] == (".png", ".jpg", ".jpeg")


@pytest.mark.parametrize("suffix", [".CSV", ".JSONL", ".Parquet"])
def test_tables_of_samples_may_have_suffixes_in_capitals(tmp_path, suffix):
    tiny.image_folder(tmp_path, 3)
    rows = [{"file_name": f"{tiny.NAMES[i]}/{i}.png", "label": 2 - i} for i in range(3)]
    write_table(tmp_path / f"t{suffix.lower()}", rows).rename(tmp_path / f"t{suffix}")
    assert labels_of(open_data(tmp_path / f"t{suffix}", DEFAULT)) == [2, 1, 0]
    assert read_labels(str(tmp_path / f"t{suffix}"), DEFAULT).tolist() == [2, 1, 0]


def test_arrays_shards_and_predictions_may_have_suffixes_in_capitals(vision, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3), np.float32), y=np.array([1, 0]))
    (tmp_path / "a.npz").rename(tmp_path / "a.NPZ")
    assert labels_of(open_data(tmp_path / "a.NPZ", DEFAULT)) == [1, 0]
    Path(tiny.write_shards(tmp_path, 1, 3).replace("{000..000}", "000")).rename(tmp_path / "s.TAR")
    assert labels_of(open_data(tmp_path / "s.TAR", DEFAULT)) == [0, 1, 2]
    (tmp_path / "p.CSV").write_text("0,1\n0.5,0.25\n")
    assert read_predictions(str(tmp_path / "p.CSV"), DEFAULT).tolist() == [[0.5, 0.25]]


def test_a_table_may_be_separated_by_tabs(tmp_path):
    tiny.image_folder(tmp_path, 3)
    (tmp_path / "t.tsv").write_text('file_name\tlabel\nred/0.png\t2\n"green/1.png"\t1\n')
    assert labels_of(open_data(tmp_path / "t.tsv", DEFAULT)) == [2, 1]
    assert read_labels(str(tmp_path / "t.tsv"), DEFAULT).tolist() == [2, 1]
    (tmp_path / "t.tsv").write_text("file_name\tlabel\nred/0.png\t2\t\n")
    with pytest.raises(
        DataError, match=r"line 2 of .* has 3 values for 2 columns; correct it, and put values with tabs"
    ):
        open_data(tmp_path / "t.tsv", DEFAULT)


# What is left out


def test_files_that_are_no_images_are_counted_and_named(tmp_path, capsys):
    root = class_folder(tmp_path / "set", **{"a.png": "PNG", "b.psd": "PNG", "c.heic": "PNG", "d.heic": "PNG"})
    (root / "0" / "deep").mkdir()
    (root / "0" / "deep" / "e").write_bytes(b"")
    (root / "0" / "link.png").symlink_to("nowhere.png")
    (root / "0" / ".hidden").write_bytes(b"")
    (root / "0" / ".cache").mkdir()
    (root / "0" / ".cache" / "f.txt").write_bytes(b"")
    assert labels_of(open_data(root, DEFAULT)) == [0]
    assert notes_of(capsys) == [
        f"{root}: left out 5 files without an image suffix, or no regular file (2 .heic, 1 .psd, 1 no suffix, 1 .png); "
        f"the first is {root}/0/b.psd"
    ]


def test_files_outside_of_the_class_folders_are_counted_and_named(tmp_path, capsys):
    root = class_folder(tmp_path / "set", **{"a.png": "PNG"})
    for name in ("loose.png", "also.png"):
        (root / name).write_bytes(tiny.png("red"))
    assert labels_of(open_data(root, DEFAULT)) == [0]
    assert notes_of(capsys) == [f"{root}: left out 2 files in no class folder (2 .png); the first is {root}/also.png"]


def test_files_that_the_metadata_does_not_list_are_counted_and_named(tmp_path, capsys):
    root = class_folder(tmp_path / "set", **{"a.png": "PNG", "b.png": "PNG", "c.jpg": "JPEG"})
    (root / "metadata.csv").write_text("file_name,label\n./0/b.png,1\n")
    assert labels_of(open_data(root, DEFAULT)) == [1]
    assert notes_of(capsys) == [
        f"{root}: left out 2 files not listed in metadata.csv (1 .png, 1 .jpg); the first is {root}/0/a.png"
    ]


def tar_of(path: Path, files: dict[str, bytes], link: str = "") -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "0.png"
            tar.addfile(info)
    return path


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_members_of_a_shard_that_are_no_samples_are_counted_and_named(vision, tmp_path, capsys):
    files = {"0.jfif": tiny.png("red"), "0.cls": b"1", "README": b"x", "._0.png": b"x", "__meta__.json": b"{}"}
    path = tar_of(tmp_path / "a.tar", files, link="1.png")
    assert labels_of(open_data(path, DEFAULT)) == [1]
    assert notes_of(capsys) == [
        f"{path}: left out 2 files without a suffix, or no regular file (1 no suffix, 1 .png); the first is README"
    ]


def test_a_second_image_of_a_sample_in_a_shard_is_named_and_a_name_that_stands_twice_refused(vision, tmp_path, capsys):
    files = {"0.jpg": tiny.png("green", 1), "0.png": tiny.png("red"), "0.cls": b"1"}
    path = tar_of(tmp_path / "a.tar", files)
    data = open_data(path, DEFAULT).dataset
    assert torch.equal(data[0][0], pixels_of(tiny.picture("red", 0)))
    assert notes_of(capsys) == [
        f"{path}: left out 1 file beside another image of the same sample (1 .jpg); the first is 0.jpg"
    ]
    tar_of(path, {"0.png": tiny.png("red"), "0.cls": b"1", "0.PNG": tiny.png("green")})
    with pytest.raises(DataError, match=r"0\.PNG is twice in .*a\.tar; name each sample once"):
        open_data(path, DEFAULT)


def test_rows_of_other_classes_of_mini_webvision_are_counted(tmp_path, capsys):
    root = tiny.write_webvision(tmp_path)
    assert labels_of(open_data(f"mini-webvision:{root}:val", DEFAULT)) == [49, 3]
    assert notes_of(capsys)[0] == (
        f"the list {root / 'info' / 'val_filelist.txt'}: left out 1 file of other classes than the first 50 (1 .jpg); "
        "the first is val000051.jpg"
    )


def test_arrays_that_are_not_read_are_named(tmp_path, capsys):
    np.savez(tmp_path / "a.npz", x=np.ones((2, 3), np.float32), y=np.array([1, 0]), images=np.zeros((9, 3)))
    assert labels_of(open_data(tmp_path / "a.npz", DEFAULT)) == [1, 0]
    assert notes_of(capsys) == [f"{tmp_path / 'a.npz'}: x and y are read, and the arrays images are left out (1)"]


@pytest.mark.parametrize("command", ["score", "correct", "compare"])
def test_what_is_left_out_stands_in_the_notes_of_a_result(tmp_path, capsys, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NET)
    space: dict = {}
    exec(NET, space)
    torch.save(space["build"]().state_dict(), "n.pt")
    tiny.image_folder(Path("set"), 12, ["0", "1", "2"])
    Path("set/0/odd.heic").write_bytes(b"x")
    flags = ["--model", "py:net.py:build", "--json", "--no-progress"]
    further = {
        "score": ["n.pt", "--data", "set"],
        "correct": ["--checkpoint", "n.pt", "--verified", "set", "--verified-from", "unseen", "--alpha", "10",
                    "--proof", "none", "--out", "o.pt", "--no-check-labels",
                    "--no-check-inputs"],
        "compare": ["n.pt", "n.pt", "--data", "set", "--no-check-inputs"],
    }  # fmt: skip
    code = main([command, *further[command], *flags])
    out, err = capsys.readouterr()
    assert code == 0, err
    found = json.loads(out)
    notes = (found["compared"] if command == "compare" else found)["notes"]
    line = "set: left out 1 file without an image suffix, or no regular file (1 .heic); the first is set/0/odd.heic"
    assert notes.count(f"{line}.") == 1
    assert err.splitlines().count(f"verifix: note: {line}") == 1


# One reader of images


def paths_of(folder: Path, n: int = 3) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        (folder / f"{i}.png").write_bytes(tiny.png("red", i))
    return [f"{i}.png" for i in range(n)]


def structs(table: Path, values: list, label: int = 0) -> Path:
    return write_table(table, [{"image": value, "label": label} for value in values])


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("absolute", [False, True])
def test_images_that_are_stored_as_paths_are_read(tmp_path, suffix, absolute):
    names = paths_of(tmp_path / "pictures")
    values = [{"bytes": None, "path": str(tmp_path / "pictures" / n) if absolute else f"pictures/{n}"} for n in names]
    data = open_data(structs(tmp_path / f"t{suffix}", values), DEFAULT).dataset
    assert torch.equal(data[2][0], pixels_of(tiny.picture("red", 2)))


def test_images_that_are_stored_as_paths_are_read_under_the_image_root(tmp_path):
    names = paths_of(tmp_path / "pictures")
    (tmp_path / "t").mkdir()
    table = structs(tmp_path / "t" / "t.parquet", [{"bytes": None, "path": name} for name in names])
    data = open_data(table, DataOptions(image_root=str(tmp_path / "pictures"))).dataset
    assert torch.equal(data[1][0], pixels_of(tiny.picture("red", 1)))
    with pytest.raises(DataError, match=r"the image in row 0 of .* names 0\.png, but .* is not a file; .*--image-root"):
        _ = open_data(table, DEFAULT).dataset[0]


def test_bytes_and_paths_may_be_mixed_in_one_column(tmp_path):
    paths_of(tmp_path)
    values = [{"bytes": tiny.png("green", 7), "path": "gone.png"}, {"bytes": None, "path": "1.png"}]
    data = open_data(structs(tmp_path / "t.parquet", values), DEFAULT).dataset
    assert torch.equal(data[0][0], pixels_of(tiny.picture("green", 7)))
    assert torch.equal(data[1][0], pixels_of(tiny.picture("red", 1)))


def test_parquet_may_have_file_names_as_text_under_image(tmp_path):
    names = paths_of(tmp_path)
    data = open_data(structs(tmp_path / "t.parquet", names), DEFAULT).dataset
    assert torch.equal(data[2][0], pixels_of(tiny.picture("red", 2)))
    table = pa.table({"image": [{"path": name} for name in names], "label": [0] * 3})
    pq.write_table(table, tmp_path / "p.parquet")
    assert torch.equal(open_data(tmp_path / "p.parquet", DEFAULT).dataset[1][0], pixels_of(tiny.picture("red", 1)))


@pytest.mark.parametrize("name", ["../secret.png", "/etc/passwd", "pictures/../../secret.png"])
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_stored_path_must_lead_into_the_root(tmp_path, name, suffix):
    paths_of(tmp_path)
    (tmp_path / "secret.png").write_bytes(tiny.png("red"))
    (tmp_path / "t" / "pictures").mkdir(parents=True)
    path = structs(tmp_path / "t" / f"t{suffix}", [{"bytes": None, "path": name}])
    with pytest.raises(DataError, match=r"names .*, which is outside of .*/t; give names inside .*--image-root"):
        _ = open_data(path, DEFAULT).dataset[0]


def test_saved_data_sets_read_images_as_tables_do(vision, tmp_path):
    import datasets

    paths_of(tmp_path / "set")

    def save(values: list, kind, **named_as) -> None:
        data = datasets.Dataset.from_dict(
            {"picture": values, "label": [0] * len(values)},
            datasets.Features({"picture": kind, "label": datasets.Value("int64")}),
        )
        tiny.quietly(data.save_to_disk, tmp_path / "set")

    options = DataOptions(image_column="picture")
    save(["1.png", "2.png"], datasets.Value("string"))
    assert torch.equal(open_data(tmp_path / "set", options).dataset[1][0], pixels_of(tiny.picture("red", 2)))
    save([tiny.png("green", 3)], datasets.Value("binary"))
    assert torch.equal(open_data(tmp_path / "set", options).dataset[0][0], pixels_of(tiny.picture("green", 3)))
    save(["../secret.png"], datasets.Value("string"))
    with pytest.raises(DataError, match=r"the image in row 0 of .* names \.\./secret\.png, which is outside of"):
        _ = open_data(tmp_path / "set", options).dataset[0]
    save([None], datasets.Image())
    with pytest.raises(DataError, match=r"the image in row 0 of .* is empty: it has neither bytes nor a path; replace"):
        _ = open_data(tmp_path / "set", DEFAULT).dataset[0]


# Class numbers that became floats, and names that became booleans


def test_whole_floats_are_class_numbers_and_others_are_refused():
    assert numbers([2.0, 0]) == [2, 0]
    assert numbers(["1.0", "0", "2."]) == [1, 0, 2]
    assert numbers([Decimal("3"), Decimal("1.00")]) == [3, 1]
    assert numbers(["1.0", "2.0"], ["2.0", "1.0"]) == [1, 0]  # these are names here
    assert numbers([1.0, 0.0], ["a", "b"], [["b", "a"]]) == [0, 1]
    with pytest.raises(DataError, match=r"row 1 has the label '1\.0', which is not among the model's classes a, b"):
        numbers(["a", "1.0"], ["a", "b"])
    for label in (0.5, float("nan"), float("inf"), 1e300, Decimal("1.5"), "0.5", ".5"):
        with pytest.raises(DataError, match=r"row 1 has the label .*; labels must be class indices"):
            numbers([1.0, label] if not isinstance(label, str) else ["1", label])


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_manifest_that_pandas_wrote_has_whole_floats_beside_blanks(tmp_path, capsys, suffix):
    tiny.image_folder(tmp_path, 4)
    blank = "" if suffix == ".csv" else None
    given, verified, status = [0, 1, 2, 0], [1.0, blank, 2.0, blank], ["relabel", "ok", "ok", blank]
    rows = [
        {"file_name": f"{tiny.NAMES[i % 3]}/{i}.png", "given_label": given[i], "verified_label": verified[i],
         "status": status[i]} for i in range(4)
    ]  # fmt: skip
    assert labels_of(open_data(write_table(tmp_path / f"m{suffix}", rows), DEFAULT)) == [1, 1, 2]
    assert notes_of(capsys) == [f"1 of 4 rows of {tmp_path / f'm{suffix}'} are left out: 1 not verified yet"]
    plain = write_table(tmp_path / f"l{suffix}", [{"label": 1.0}, {"label": 0.0}])
    assert as_labels(read_labels(str(plain), DEFAULT)).tolist() == [1, 0]


def test_nan_is_a_blank_in_a_manifest(tmp_path):
    tiny.image_folder(tmp_path, 2)
    nan = float("nan")
    lines = [
        {"file_name": "red/0.png", "given_label": 1, "verified_label": nan, "status": "ok"},
        {"file_name": "green/1.png", "given_label": nan, "verified_label": 2.0, "status": nan},
    ]
    assert labels_of(open_data(write_table(tmp_path / "m.jsonl", lines), DEFAULT)) == [1, 2]


def test_labels_of_shards_and_saved_data_sets_may_be_whole_floats(vision, tmp_path):
    import datasets

    path = tar_of(tmp_path / "a.tar", {"0.png": tiny.png("red"), "0.json": b'{"label": 2.0}'})
    assert labels_of(open_data(path, DEFAULT)) == [2]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("float32")})
    data = datasets.Dataset.from_dict({"image": [tiny.picture("red", 0)] * 2, "label": [1.0, 0.0]}, features)
    tiny.quietly(data.save_to_disk, tmp_path / "set")
    assert labels_of(open_data(tmp_path / "set", DEFAULT)) == [1, 0]


@pytest.mark.parametrize("wrong", [False, 1, None, 0.5])
def test_class_names_that_are_no_text_are_refused(wrong):
    with pytest.raises(UsageError, match=r"--classes has .*, which is no text; give names as text \(in YAML, put no"):
        _ = DataOptions(classes=["a", wrong]).class_names


def test_names_of_a_model_that_became_booleans_are_not_its_names():
    from torch import nn

    from verifix.model.class_names import names_among

    assert names_among({"0": False, "1": True}, nn.Identity()) is None
    assert names_among([False, True], nn.Identity()) is None
    assert names_among({"0": "no", "1": "yes"}, nn.Identity()) == ("no", "yes")
    with pytest.raises(DataError, match="order of the model's outputs is not known; give --classes"):
        numbers(["no", "yes"])
