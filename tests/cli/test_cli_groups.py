"""--groups: the column that says which samples belong together, in every format, and what is made of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import verifix
from tests.cli.test_cli import run
from tests.tiny import NAMES, image_folder, png, quietly, write_shards
from verifix.errors import DataError, UsageError
from verifix.io.data.open import open_data
from verifix.io.data.prediction_files import read_labelled
from verifix.io.options import DataOptions
from verifix.model.samples import read_samples
from verifix.options import GroupOptions

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
"""
PATIENTS = ["p0", "p0", "p1", "p2", "p1", "p3"]
MERGED = [0, 0, 1, 2, 1, 3]


@dataclass(frozen=True, kw_only=True)
class Options(DataOptions, GroupOptions):
    """What a command that takes groups gives to the readers."""


def opened(path, column="patient") -> list[int]:
    return read_samples(open_data(path, Options(groups=column))).groups.tolist()


def pictures(root: Path) -> list[str]:
    for i in range(6):
        (root / f"{i}.png").write_bytes(png(NAMES[i % 3], i))
    return [f"{i}.png" for i in range(6)]


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "metadata"])
def test_a_column_of_a_table_makes_groups(kind, tmp_path):
    names = pictures(tmp_path)
    rows = [
        {"file_name": n, "label": i % 3, "patient": p} for i, (n, p) in enumerate(zip(names, PATIENTS, strict=True))
    ]
    path = tmp_path / f"{'metadata' if kind == 'metadata' else 't'}.{'csv' if kind == 'metadata' else kind}"
    if kind == "jsonl":
        path.write_text("\n".join(map(json.dumps, rows)))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        mark = "\t" if kind == "tsv" else ","
        lines = [mark.join(rows[0]), *(mark.join(map(str, row.values())) for row in rows)]
        path.write_text("\n".join(lines) + "\n")
    assert opened(tmp_path if kind == "metadata" else path) == MERGED
    assert read_samples(open_data(path, Options())).declared == ()


def test_rows_that_a_manifest_leaves_out_move_no_group(tmp_path):
    names = pictures(tmp_path)
    rows = ["file_name,verified_label,status,patient"]
    rows += [f"{n},{'' if i == 1 else i % 3},{'skip' if i == 1 else 'ok'},{PATIENTS[i]} " for i, n in enumerate(names)]
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    samples = read_samples(open_data(tmp_path / "m.csv", Options(groups="patient")))
    assert samples.declared == ("p0", "p1", "p2", "p1", "p3")
    labels, groups = read_labelled(str(tmp_path / "m.csv"), Options(groups="patient"))
    assert labels.tolist() == [0, 2, 0, 1, 2]
    assert groups.tolist() == [0, 1, 2, 1, 3]


def test_arrays_saved_datasets_and_shards_have_groups_as_well(tmp_path, capsys):
    import datasets

    x = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(6) % 3, patient=np.array(PATIENTS), site=np.arange(6.0) // 2)
    assert opened(tmp_path / "a.npz") == MERGED
    assert "patient" not in capsys.readouterr().err  # it is read, and not left out
    assert opened(tmp_path / "a.npz", "site") == [0, 0, 1, 1, 2, 2]
    feature = datasets.Features(
        {"image": datasets.Image(), "label": datasets.Value("int64"), "patient": datasets.Value("string")}
    )
    rows = {"image": [{"bytes": png(NAMES[i % 3], i), "path": None} for i in range(6)], "label": [0, 1, 2] * 2}
    saved = datasets.Dataset.from_dict(rows | {"patient": PATIENTS}, features=feature)
    quietly(saved.save_to_disk, tmp_path / "saved")
    assert opened(tmp_path / "saved") == MERGED
    kinds = {"png": lambda i: png(NAMES[i % 3], i), "json": lambda i: {"label": i % 3, "patient": PATIENTS[i]}}
    (tmp_path / "shards").mkdir()
    assert opened(write_shards(tmp_path / "shards", 2, 3, **kinds)) == MERGED


def test_whole_numbers_are_one_group_in_every_form(tmp_path):
    pictures(tmp_path)
    lines = [f"{i}.png,{i % 3},{site}" for i, site in enumerate(["1", "1.0", " 1", "2", "02", "x"])]
    (tmp_path / "t.csv").write_text("\n".join(["file_name,label,site", *lines]) + "\n")
    samples = read_samples(open_data(tmp_path / "t.csv", Options(groups="site")))
    assert samples.groups.tolist() == [0, 0, 0, 1, 2, 3]


def test_a_column_that_cannot_be_used_is_refused_in_one_line(tmp_path):
    names = pictures(tmp_path)
    lines = [f"{n},{i % 3},{'' if i == 4 else 'p'}" for i, n in enumerate(names)]
    (tmp_path / "t.csv").write_text("\n".join(["file_name,label,patient", *lines]) + "\n")
    with pytest.raises(DataError, match=r"no column 'person' .it has file_name, label, patient.; name the one of"):
        opened(tmp_path / "t.csv", "person")
    with pytest.raises(
        DataError, match=r"line 6 of .*t.csv has '' in the column 'patient' of groups; give every sample"
    ):
        opened(tmp_path / "t.csv")
    with pytest.raises(UsageError, match=r"has no columns, so none named 'patient' .* metadata.csv with the columns"):
        opened(image_folder(tmp_path / "folder", 6, ["0", "1", "2"]))
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.arange(4), patient=np.zeros(3), two=np.zeros((4, 2)))
    with pytest.raises(DataError, match="has 3 groups for 4 labels"):
        opened(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"has the array 'two' \[4, 2\]; groups are one value per input"):
        opened(tmp_path / "a.npz", "two")
    shards = write_shards(tmp_path, 1, 3, png=lambda i: png("red", i), cls=lambda i: i)
    with pytest.raises(DataError, match="has no json beside it to read the group 'patient' from"):
        opened(shards)
    np.save(tmp_path / "y.npy", np.arange(4))
    with pytest.raises(UsageError, match="has no columns, so none named 'patient'"):
        read_labelled(str(tmp_path / "y.npy"), Options(groups="patient"))


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A network, and points of which five each are nearly the same, with random labels."""
    root = tmp_path_factory.mktemp("groups")
    (root / "net.py").write_text(NET)
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    save_file(model.state_dict(), root / "net.safetensors")
    generator = torch.Generator().manual_seed(0)
    g = torch.arange(40).repeat_interleave(5)
    x = torch.randn(40, 8, generator=generator)[g] + 0.05 * torch.randn(200, 8, generator=generator)
    y = torch.randint(4, (40,), generator=generator)[g]
    names = np.array([f"patient {int(k)}" for k in g])
    for name, chosen in (("all", range(200)), ("verified", range(100)), ("test", range(95, 200))):
        rows = list(chosen)
        np.savez(root / f"{name}.npz", x=x[rows].numpy(), y=y[rows].numpy(), patient=names[rows])
    return root


def corrected(world: Path, out: Path, capsys, *more: object) -> tuple[int, dict, str]:
    model = ["--model", f"py:{world / 'net.py'}:build", "--checkpoint", world / "net.safetensors", "--no-progress"]
    samples = ["--verified-from", "unseen", "--no-check-labels", "--json", "--force", "--out", out / "o.safetensors"]
    samples += [] if "--test" in more else ["--drawn", "random"]
    code, text, err = run(["correct", *model, *samples, *more], capsys)
    return code, json.loads(text) if text else {}, err


def test_every_proof_of_the_command_respects_the_column(world, tmp_path, capsys):
    arrays = np.load(world / "all.npz")
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    model.load_state_dict(verifix.storage.tensors.read_safetensors(world / "net.safetensors")[0])
    data = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    wanted = verifix.prove(
        model.eval(),
        data,
        alpha=10.0,
        groups=arrays["patient"],
        progress=False,
        check_labels=False,
        check_inputs=False,
        drawn="random",
        verified_from="unseen",
    ).comparison.as_dict()
    flags = ["--groups", "patient", "--alpha", "10"]
    _, found, err = corrected(world, tmp_path, capsys, "--verified", world / "all.npz", *flags)
    assert found["proof"]["comparison"] == wanted, err
    assert (wanted["groups"], wanted["doubt"]) == (40, None)
    assert found["provenance"]["groups"] == 40
    assert "--groups patient" in found["command"]
    _, split, _ = corrected(world, tmp_path, capsys, "--verified", world / "all.npz", *flags, "--proof", "split")
    assert split["proof"]["comparison"]["groups"] == 20
    given = ["--verified", world / "verified.npz", "--test", world / "test.npz"]
    _, test, err = corrected(world, tmp_path, capsys, *given, *flags)
    assert test["proof"]["comparison"]["groups"] == 20  # patient 19 is verified, and left out
    assert test["proof"]["samples"] == 100
    assert "5 of the 105 test samples are among those that the correction is made from or of a group of theirs" in err


def test_without_the_column_the_command_speaks_of_near_copies(world, tmp_path, capsys):
    for more in (["--proof", "split"], []):
        given = ["--verified", world / "all.npz", "--alpha", "10", *more]
        _, found, _ = corrected(world, tmp_path, capsys, *given)
        assert "--groups" in found["proof"]["comparison"]["doubt"]
        assert found["verdict"] != "improved"
        assert found["proof"]["comparison"]["groups"] is None


@pytest.fixture(scope="module")
def predictions(tmp_path_factory) -> tuple[Path, np.ndarray]:
    """What two models say to 30 samples, each of which stands there three times."""
    root = tmp_path_factory.mktemp("predictions")
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 30)
    before, after = (np.where(generator.random(30) < p, labels, (labels + 1) % 3) for p in (0.5, 0.7))
    order = generator.permutation(90)
    rows = np.repeat(np.arange(30), 3)[order]
    for name, values in (("before", before), ("after", after), ("labels", labels)):
        np.save(root / f"{name}.npy", values[rows])
        np.save(root / f"{name}-once.npy", values)
    for column in ("id", "file_name", "text", "video", "index"):
        lines = [f"{label},item {row}" for label, row in zip(labels[rows], rows, strict=True)]
        (root / f"{column}.csv").write_text("\n".join([f"label,{column}", *lines]) + "\n")
    x = generator.normal(size=(30, 5))
    np.savez(root / "inputs.npz", x=x[rows], y=labels[rows])
    np.savez(root / "video.npz", y=labels[rows], video=rows)
    return root, rows


@pytest.mark.parametrize(
    ("data", "more"),
    [
        ("id.csv", []),
        ("file_name.csv", []),
        ("text.csv", []),
        ("inputs.npz", []),
        ("video.csv", ["--groups", "video"]),
        ("video.npz", ["--groups", "video"]),
    ],
)
def test_compare_counts_rows_of_one_sample_once(data, more, predictions, capsys):
    root, _ = predictions
    answers = ["compare", root / "before.npy", root / "after.npy", "--json", "--data", root / data, *more]
    once = ["compare", root / "before-once.npy", root / "after-once.npy", "--json", "--data", root / "labels-once.npy"]
    (code, text, err), (_, wanted, _) = run(answers, capsys), run(once, capsys)
    assert code == 0, err
    found, wanted = json.loads(text), json.loads(wanted)
    assert (found["groups"], wanted["groups"]) == (30, None)
    assert found["p_better"] == wanted["p_better"]
    width, once_width = (c["gain"]["high"] - c["gain"]["low"] for c in (found, wanted))
    assert width == pytest.approx(once_width, rel=0.1)


@pytest.mark.parametrize("data", ["labels.npy", "video.csv", "index.csv"])
def test_compare_takes_rows_for_independent_where_nothing_tells(data, predictions, capsys):
    root, _ = predictions
    code, text, _ = run(["compare", root / "before.npy", root / "after.npy", "--json", "--data", root / data], capsys)
    assert code == 0
    assert json.loads(text)["groups"] is None


def test_compare_counts_copies_that_a_model_sees_once(world, tmp_path, capsys):
    arrays = np.load(world / "all.npz")
    rows = np.repeat(np.arange(40), 3)
    np.savez(tmp_path / "d.npz", x=arrays["x"][rows], y=arrays["y"][rows])
    argv = ["compare", world / "net.safetensors", world / "net.safetensors", "--data", tmp_path / "d.npz"]
    more = ["--model", f"py:{world / 'net.py'}:build", "--json", "--no-progress", "--no-check-inputs"]
    code, text, err = run([*argv, *more], capsys)
    assert code == 0, err
    assert json.loads(text)["groups"] == 40
