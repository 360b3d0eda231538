"""Labels in files: whole floats, two columns that may be the labels, and suffixes in capitals."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pandas as pd
import pytest

from tests import tiny
from tests.io.test_data import labels_of
from verifix import DataError
from verifix.io.data.open import open_data
from verifix.io.data.prediction_files import read_labels
from verifix.io.options import DataOptions

DEFAULT = DataOptions()
LABELS = [0, 2, 1, 2]
IMAGES = [f"{i}.png" for i in range(4)]


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(IMAGES):
        tiny.picture("red", i).save(tmp_path / name)
    return tmp_path


def saved(folder, **arrays):
    x = np.zeros((4, 3), np.float32)
    np.savez(folder / "a.npz", **({"x": x} | arrays))
    return folder / "a.npz"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f8", "int8", "U4"])
@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_whole_numbers_in_npz_are_class_indices(folder, dtype, shape):
    labels = np.array(LABELS, np.float64 if dtype == "U4" else dtype).reshape(shape).astype(dtype)
    assert labels_of(open_data(saved(folder, y=labels), DEFAULT).dataset) == LABELS


@pytest.mark.parametrize(("value", "said"), [(1.5, "1.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_other_numbers_in_npz_are_refused_by_their_place(folder, value, said):
    labels = np.array([0, 2, value, 2.0])
    with pytest.raises(DataError, match=rf"a.npz has labels of float64, and label 2 is {said}; they must be class ind"):
        open_data(saved(folder, y=labels), DEFAULT)


@pytest.mark.parametrize(("first", "second"), [("y", "labels"), ("labels", "targets"), ("Y", "label")])
def test_two_arrays_of_labels_are_read_if_they_are_equal_and_else_refused(folder, first, second):
    path = saved(folder, **{first: np.array(LABELS), second: np.array(LABELS, float)})
    assert labels_of(open_data(path, DEFAULT).dataset) == LABELS
    saved(folder, **{first: np.array(LABELS), second: np.array(LABELS) + 1})
    with pytest.raises(DataError, match=r"a.npz has the labels \w+ and \w+, which differ; .* leave one of them out"):
        open_data(path, DEFAULT)


WRITERS = {
    "csv": lambda table, path: table.to_csv(path, index=False),
    "tsv": lambda table, path: table.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda table, path: table.to_json(path, orient="records", lines=True),
    "parquet": lambda table, path: table.to_parquet(path),
    "CSV": lambda table, path: table.to_csv(path, index=False),
    "Tsv": lambda table, path: table.to_csv(path, index=False, sep="\t"),
    "JSONL": lambda table, path: table.to_json(path, orient="records", lines=True),
    "PARQUET": lambda table, path: table.to_parquet(path),
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_integers_that_became_floats_are_read_and_the_blank_is_named(folder, suffix):
    path = folder / f"t.{suffix}"
    WRITERS[suffix](pd.DataFrame({"file_name": IMAGES, "label": np.array(LABELS, float)}), path)
    assert labels_of(open_data(path, DEFAULT).dataset) == LABELS
    WRITERS[suffix](pd.DataFrame({"file_name": IMAGES, "label": [0.0, 2.0, None, 2.0]}), path)
    with pytest.raises(DataError, match=r"(line 4|line 3|row 2) of .* has the label ('nan'|''|None)"):
        open_data(path, DEFAULT)


@pytest.mark.parametrize("blank", ["nan", "NaN", "None", "null", "<NA>"])
def test_the_blank_is_named_and_not_the_numbers_beside_it(folder, blank):
    lines = ["file_name,label", "0.png,0.0", "1.png,2.0", f"2.png,{blank}", "3.png,1.0"]
    (folder / "t.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"line 4 of .* has the label '{blank}', and 3 of 4 labels are class numbers"):
        open_data(folder / "t.csv", DEFAULT)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_two_columns_of_labels_are_read_if_they_are_equal_and_else_refused(folder, suffix):
    path = folder / f"t.{suffix}"
    table = pd.DataFrame({"file_name": IMAGES, "labels": LABELS, "label": np.array(LABELS, float)})
    WRITERS[suffix](table, path)
    assert labels_of(open_data(path, DEFAULT).dataset) == LABELS
    table["labels"] = [0, 2, 1, 0]
    WRITERS[suffix](table, path)
    with pytest.raises(DataError, match=r"the labels 'label' and 'labels', which differ; name .* with --label-column"):
        open_data(path, DEFAULT)
    assert labels_of(open_data(path, DataOptions(label_column="labels")).dataset) == [0, 2, 1, 0]
    with pytest.raises(DataError, match=r"the labels 'label' and 'labels', which differ"):
        read_labels(str(path), DEFAULT)


def test_two_columns_of_labels_in_a_saved_dataset_are_no_different(vision, tmp_path):
    import datasets

    images = [tiny.picture("red", i) for i in range(4)]
    data = datasets.Dataset.from_dict({"image": images, "label": LABELS, "labels": LABELS})
    data = data.cast_column("image", datasets.Image())
    data.save_to_disk(tmp_path / "same")
    assert labels_of(open_data(tmp_path / "same", DEFAULT).dataset) == LABELS
    data.remove_columns("labels").add_column("labels", [1, 1, 1, 1]).save_to_disk(tmp_path / "other")
    with pytest.raises(DataError, match=r"the labels 'label' and 'labels', which differ"):
        open_data(tmp_path / "other", DEFAULT)
    assert labels_of(open_data(tmp_path / "other", DataOptions(label_column="labels")).dataset) == [1, 1, 1, 1]


def shard(path, cls, **beside):
    buffer = io.BytesIO()
    tiny.picture("red", 0).save(buffer, "PNG")
    with tarfile.open(path, "w") as tar:
        for name, content in (("a.PNG", buffer.getvalue()), ("a.CLS", cls), ("a.Json", json.dumps(beside).encode())):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def test_shards_with_a_cls_and_another_label_in_json_are_refused(tmp_path):
    assert labels_of(open_data(shard(tmp_path / "s.TAR", b"1", label=1.0), DEFAULT).dataset) == [1]
    assert labels_of(open_data(shard(tmp_path / "s.tar", b"1", caption="a cat"), DEFAULT).dataset) == [1]
    path = shard(tmp_path / "s.tar", b"1", label=2, other=3)
    with pytest.raises(DataError, match=r"the label '1' in its cls and 2 in its json; .* --label-column cls or"):
        open_data(path, DEFAULT)
    for column, label in {"cls": 1, "label": 2, "other": 3}.items():
        assert labels_of(open_data(path, DataOptions(label_column=column)).dataset) == [label]
