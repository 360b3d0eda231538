"""`verifix import` and `verifix export`: the tools themselves read what is written, or it has their documented form."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jsonschema
import numpy as np
import pandas as pd
import pytest

from tests.record_cases import header, record, write
from tests.tiny import NAMES, image_folder
from verifix.cli.main import main
from verifix.io.data.open import open_data
from verifix.io.data.records import VERIFIED, Record, read_lines
from verifix.io.data.verified import read_decisions
from verifix.io.options import DataOptions
from verifix.selection.queue import Entry, Queue, read_queue, write_queue

COUNT = 30
FILES = sorted(f"{NAMES[i % 3]}/{i}.png" for i in range(COUNT))
LABELS = [NAMES.index(name.split("/")[0]) for name in FILES]
CLASSES = ["--classes", ",".join(NAMES)]

CHOICE = {
    "type": "object",
    "required": ["from_name", "to_name", "type", "value"],
    "properties": {
        "type": {"const": "choices"},
        "value": {
            "type": "object",
            "required": ["choices"],
            "properties": {"choices": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
        },
    },
}
TASKS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["data"],
        "properties": {
            "data": {"type": "object"},
            "annotations": {"type": "array", "items": {"type": "object", "required": ["result"], "properties": {
                "result": {"type": "array", "items": CHOICE}, "was_cancelled": {"type": "boolean"}}}},
            "predictions": {"type": "array", "items": {"type": "object", "required": ["result"], "properties": {
                "result": {"type": "array", "items": CHOICE}, "model_version": {"type": "string"},
                "score": {"type": "number", "minimum": 0, "maximum": 1}}}},
        },
    },
}  # fmt: skip
"""What https://labelstud.io/guide/task_format and /guide/predictions say of tasks."""

FIFTYONE = {
    "type": "object",
    "required": ["classes", "labels"],
    "properties": {
        "classes": {"type": "array", "items": {"type": "string"}},
        "labels": {"type": "object", "additionalProperties": {"type": ["integer", "null"], "minimum": 0, "maximum": 2}},
    },
}
"""What https://docs.voxel51.com says of labels.json of a FiftyOneImageClassificationDataset."""


@pytest.fixture
def photos(tmp_path) -> Path:
    return image_folder(tmp_path / "photos", COUNT)


def given(number: int) -> str:
    return NAMES[LABELS[number]]


def other(number: int) -> str:
    return NAMES[(LABELS[number] + 1) % 3]


@pytest.fixture
def verified(photos, tmp_path) -> Path:
    """Records: 2 and 5 are wrong, 3 and 8 are right, nobody knows 9, and 11 is in dispute."""
    lines = [record(i, given(i), other(i)) for i in (2, 5)] + [record(i, given(i)) for i in (3, 8)]
    lines += [record(9, given(9), status="unsure"), record(11, given(11))]
    lines += [record(11, given(11), other(11), annotator="ben")]
    return write(tmp_path / "verified.jsonl", header(photos, FILES, LABELS, NAMES), *lines)


CLEANED = [other(i) if i in (2, 5) else given(i) for i in range(COUNT)]


def run(capsys, *words) -> str:
    code = main([*map(str, words)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out


def refused(capsys, *words) -> str:
    code = main([*map(str, words)])
    out, err = capsys.readouterr()
    assert (code in (2, 5), out) == (True, "")
    assert len(err.strip().splitlines()) == 1
    return err


def export(capsys, verified, form, out) -> Path:
    run(capsys, "export", verified, "--format", form, "--out", out)
    return out


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_cleaned_labels_serve_the_next_training(photos, verified, tmp_path, capsys, suffix):
    out = export(capsys, verified, "cleaned", tmp_path / f"cleaned.{suffix}")
    found = open_data(out, DataOptions(classes=NAMES, image_root=str(photos))).dataset
    assert [NAMES[label] for label in found.labels] == CLEANED
    assert [found.file(i) for i in range(COUNT)] == [str(photos / name) for name in FILES]
    frame = {"csv": pd.read_csv, "parquet": pd.read_parquet, "jsonl": lambda p: pd.read_json(p, lines=True)}[suffix](
        out
    )
    assert frame.label.tolist() == CLEANED
    assert frame.given_label.tolist() == [given(i) for i in range(COUNT)]
    assert frame.id[frame.verified].tolist() == [2, 3, 5, 8]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_manifest_has_what_was_looked_at_and_comes_back(photos, verified, tmp_path, capsys, suffix):
    out = export(capsys, verified, "manifest", tmp_path / f"m.{suffix}")
    found = open_data(out, DataOptions(classes=NAMES, image_root=str(photos))).dataset
    assert [NAMES[label] for label in found.labels] == [other(2), given(3), other(5), given(8)]
    back = tmp_path / "back.jsonl"
    run(capsys, "import", out, "--format", "manifest", "--data", photos, *CLASSES, "--out", back, "--annotator", "cyd")
    assert read_decisions(back).labels == read_decisions(verified).labels
    assert {each.annotator for each in read_lines(back, VERIFIED, Record)[1]} == {"cyd"}


def test_cleanlab_takes_the_mask_and_the_table(verified, tmp_path, capsys):
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    x = np.random.default_rng(0).normal(size=(COUNT, 3)) + 3 * np.eye(3)[LABELS]
    mask = np.load(export(capsys, verified, "cleanlab", tmp_path / "mask.npy"))
    assert np.flatnonzero(mask).tolist() == [2, 5]
    table = pd.read_csv(export(capsys, verified, "cleanlab", tmp_path / "issues.csv"))
    assert table.is_label_issue.tolist() == mask.tolist()
    assert table.given_label.tolist() == LABELS
    for issues in (mask, table):
        learned = CleanLearning(LogisticRegression()).fit(x, np.array(LABELS), label_issues=issues)
        assert learned.get_label_issues().is_label_issue.tolist() == mask.tolist()


@pytest.mark.filterwarnings("ignore:The inplace keyword")  # what cleanlab asks of pandas
def test_label_issues_of_cleanlab_become_a_queue(photos, tmp_path, capsys):
    from cleanlab.classification import CleanLearning
    from cleanlab.datalab.datalab import Datalab
    from cleanlab.filter import find_label_issues

    noise = np.random.default_rng(0)
    wrong = [4, 13, 20]
    truth = [(label + 1) % 3 if i in wrong else label for i, label in enumerate(LABELS)]
    shares = np.full((COUNT, 3), 0.1) + 0.7 * np.eye(3)[truth] + noise.uniform(0, 0.02, (COUNT, 3))
    shares /= shares.sum(axis=1, keepdims=True)
    labels = np.array(LABELS)
    by = {"filter_by": "predicted_neq_given"}
    ranked = find_label_issues(labels, shares, return_indices_ranked_by="self_confidence", n_jobs=1)
    np.save(tmp_path / "mask.npy", find_label_issues(labels, shares, n_jobs=1))
    np.save(tmp_path / "ranked.npy", ranked)
    frame = CleanLearning(find_label_issues_kwargs=by).find_label_issues(labels=labels, pred_probs=shares)
    frame.to_csv(tmp_path / "frame.csv", index=False)
    frame.to_parquet(tmp_path / "frame.parquet")
    lab = Datalab({"label": [NAMES[y] for y in LABELS], "x": list(range(COUNT))}, label_name="label", verbosity=0)
    order = [NAMES.index(name) for name in sorted(NAMES)]  # Datalab sorts the classes
    lab.find_issues(
        pred_probs=shares[:, order], issue_types={"label": {"clean_learning_kwargs": {"find_label_issues_kwargs": by}}}
    )
    pd.concat([lab.get_issues("label")]).to_csv(tmp_path / "datalab.csv", index=False)
    lab.issues.to_csv(tmp_path / "issues.csv", index=False)
    for name in ("mask.npy", "ranked.npy", "frame.csv", "frame.parquet", "datalab.csv", "issues.csv"):
        out = tmp_path / f"{name}.jsonl"
        run(capsys, "import", tmp_path / name, "--format", "cleanlab", "--data", photos, *CLASSES, "--out", out)
        queue = read_queue(out)
        ids = [entry.id for entry in queue.entries]
        assert sorted(ids) == wrong
        assert {(entry.part, entry.probability) for entry in queue.entries} == {("cleanlab", None)}
        assert [entry.file for entry in queue.entries] == [FILES[i] for i in ids]
        if name != "mask.npy":
            assert ids == ranked.tolist()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (np.zeros(COUNT - 1, bool), "label issues of 30 samples are 30 values True or False"),
        (np.array([3, 3]), "different indices from 0 to 29"),
        (np.array([30]), "different indices from 0 to 29"),
        (np.ones((COUNT, 2)), "float64 of shape"),
        (np.zeros(COUNT, bool), "marks no sample"),
        (np.array([object()], dtype=object), "not a readable .npy file"),
        (pd.DataFrame({"is_label_issue": [True] * 29}), "has 29 rows and"),
        (pd.DataFrame({"is_wrong": [True] * COUNT}), "no column 'is_label_issue'"),
        (pd.DataFrame({"is_label_issue": [True] * COUNT, "given_label": [0] * COUNT}), "has the given label"),
        (pd.DataFrame({"is_label_issue": [True] * COUNT, "given_label": ["pink"] * COUNT}), "label 'pink'"),
    ],
    ids=range(10),
)
def test_label_issues_of_something_else_are_refused(photos, tmp_path, capsys, content, told):
    path = tmp_path / ("x.csv" if isinstance(content, pd.DataFrame) else "x.npy")
    content.to_csv(path, index=False) if path.suffix == ".csv" else np.save(path, content, allow_pickle=True)
    out = tmp_path / "q.jsonl"
    assert told in refused(capsys, "import", path, "--format", "cleanlab", "--data", photos, *CLASSES, "--out", out)
    assert not out.exists()


def test_the_datasets_library_reads_the_image_folder_and_the_saved_dataset(photos, verified, tmp_path, capsys):
    import datasets

    metadata = export(capsys, verified, "huggingface", tmp_path / "metadata.jsonl")
    folder = tmp_path / "folder"
    shutil.copytree(photos, folder)
    shutil.copy(metadata, folder / "metadata.jsonl")
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache")
    )
    labels = {Path(row["image"].filename).name: row["label"] for row in loaded}
    assert labels == {Path(name).name: label for name, label in zip(FILES, CLEANED, strict=True)}
    assert [NAMES[y] for y in open_data(folder, DataOptions(classes=NAMES)).dataset.labels] == CLEANED
    saved = export(capsys, verified, "datasets", tmp_path / "saved")
    shutil.rmtree(photos)  # the images are in it
    found = datasets.load_from_disk(str(saved))
    assert [found.features["label"].int2str(y) for y in found["label"]] == CLEANED
    assert found[0]["image"].size == (12, 12)


def test_labels_of_the_datasets_library_come_back(photos, verified, tmp_path, capsys):
    saved = export(capsys, verified, "datasets", tmp_path / "saved")
    metadata = export(capsys, verified, "huggingface", tmp_path / "metadata.csv")
    for name, form in ((saved, "datasets"), (metadata, "huggingface")):
        out = tmp_path / f"{form}.jsonl"
        run(capsys, "import", name, "--format", form, "--data", photos, *CLASSES, "--out", out)
        assert read_decisions(out).labels == dict(enumerate(CLEANED))
    (photos / "red" / "0.png").unlink()
    err = refused(
        capsys, "import", saved, "--format", "datasets", "--data", photos, *CLASSES, "--out", tmp_path / "x.jsonl"
    )
    assert "has 30 rows and" in err


def test_fiftyone_labels_have_the_documented_form_and_come_back(photos, verified, tmp_path, capsys):
    out = export(capsys, verified, "fiftyone", tmp_path / "labels.json")
    content = json.loads(out.read_text())
    jsonschema.validate(content, FIFTYONE)
    for i, file in enumerate(FILES):  # names are paths below the folder, without suffix
        assert content["classes"][content["labels"][file.removesuffix(".png")]] == CLEANED[i]
    content["labels"] = {
        str(photos / FILES[2]): {"label": content["labels"][FILES[2][:-4]], "confidence": 0.9},  # absolute, predicted
        FILES[3][:-4]: content["labels"][FILES[3][:-4]],
        FILES[4][:-4]: None,
    }
    (tmp_path / "some.json").write_text(json.dumps(content))
    back = tmp_path / "back.jsonl"
    given_words = ["--format", "fiftyone", "--data", photos, *CLASSES, "--out"]
    run(capsys, "import", tmp_path / "some.json", *given_words, back)
    assert read_decisions(back).labels == {2: other(2), 3: given(3)}
    (tmp_path / "names.json").write_text(json.dumps({"labels": {FILES[0]: "blue"}}))
    run(capsys, "import", tmp_path / "names.json", *given_words, tmp_path / "n.jsonl")
    assert read_decisions(tmp_path / "n.jsonl").labels == {0: "blue"}
    for labels, told in (
        ({FILES[0]: 3}, "no index of the 3 classes"),
        ({"red/99": 1}, "none of the 30 samples"),
        ({FILES[0]: {"label": [0, 1]}}, "several labels"),
    ):
        (tmp_path / "wrong.json").write_text(json.dumps({"classes": NAMES, "labels": labels}))
        assert told in refused(capsys, "import", tmp_path / "wrong.json", *given_words, tmp_path / "w.jsonl")


def queue_of(photos, tmp_path, verified) -> Path:
    head = read_decisions(verified).header
    from dataclasses import replace

    head = replace(head, format="verifix-queue-1", random=(7, 4), probability=2 / COUNT)
    entries = [
        Entry(id=7, file=FILES[7], label=LABELS[7], guesses=((1, 0.6), (0, 0.3)), probability=2 / COUNT, part="random"),
        Entry(id=12, file=FILES[12], label=LABELS[12], guesses=((2, 0.9),), probability=None, part="uncertain"),
        Entry(id=4, file=FILES[4], label=LABELS[4], guesses=(), probability=2 / COUNT, part="random"),
    ]
    return write_queue(Queue(head, tuple(entries)), tmp_path / "queue.jsonl")


def test_label_studio_gets_a_queue_and_gives_decisions_back(photos, verified, tmp_path, capsys):
    queue = queue_of(photos, tmp_path, verified)
    tasks = json.loads(export(capsys, queue, "label-studio", tmp_path / "tasks.json").read_text())
    jsonschema.validate(tasks, TASKS)
    assert [task["data"]["image"] for task in tasks] == [FILES[i] for i in (7, 12, 4)]
    assert tasks[0]["predictions"][0]["result"][0]["value"] == {"choices": [NAMES[1]]}
    for number, (task, label) in enumerate(zip(tasks, (other(7), given(12), None), strict=True)):
        task |= {"id": number, "predictions": []}
        result = [{"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [label]}}]
        said = {"result": result if label else [], "was_cancelled": label is None, "completed_by": {"email": "a@b.c"}}
        task["annotations"] = [said | {"updated_at": "2026-01-02T03:04:05Z"}]
    (tmp_path / "done.json").write_text(json.dumps(tasks))
    out = tmp_path / "back.jsonl"
    run(capsys, "import", tmp_path / "done.json", "--format", "label-studio", "--queue", queue, "--out", out)
    decisions = read_decisions(out)
    assert decisions.labels == {7: other(7), 12: given(12)}
    assert decisions.left_out == {4: "skip"}
    assert decisions.counted == {7, 4}  # the random part still proves
    _, records = read_lines(out, VERIFIED, Record)
    assert {(each.annotator, each.time) for each in records} == {("a@b.c", "2026-01-02T03:04:05Z")}


def test_label_studio_annotations_are_checked(photos, verified, tmp_path, capsys):
    tasks = json.loads(export(capsys, verified, "label-studio", tmp_path / "t.json").read_text())
    jsonschema.validate(tasks, TASKS)
    words = ["--format", "label-studio", "--data", photos, *CLASSES, "--out"]
    out = tmp_path / "back.jsonl"
    run(capsys, "import", tmp_path / "t.json", *words, out)
    assert read_decisions(out).labels == read_decisions(verified).labels
    for task in tasks:  # as if they were from elsewhere: only file names tell
        task["data"] = {"image": f"/data/local-files/?d=store/photos/{task['data']['image']}"}
    (tmp_path / "t.json").write_text(json.dumps(tasks))
    run(capsys, "import", tmp_path / "t.json", *words, tmp_path / "again.jsonl")
    assert read_decisions(tmp_path / "again.jsonl").labels == read_decisions(verified).labels
    for number, task in enumerate(tasks):  # as if they had been uploaded, which takes the folders away
        name = task["data"]["image"].rpartition("/")[2]
        task["data"] = {"image": f"/data/upload/3/{number:08x}-{name}"}
    tasks[0]["annotations"][0]["result"] = []  # submitted without a choice
    (tmp_path / "t.json").write_text(json.dumps(tasks))
    run(capsys, "import", tmp_path / "t.json", *words, tmp_path / "uploaded.jsonl")
    found, before = read_decisions(tmp_path / "uploaded.jsonl"), read_decisions(verified).labels
    (empty,) = found.left_out
    assert found.left_out == {empty: "skip"}
    assert found.labels == {i: label for i, label in before.items() if i != empty}
    two = [{"from_name": "l", "to_name": "i", "type": "choices", "value": {"choices": ["red", "blue"]}}]
    for task, told in (
        ({"data": {"image": FILES[0]}, "annotations": [{"result": two}]}, "2 choices"),
        ({"data": {"image": "no.png"}, "annotations": [{"result": two}]}, "none of the 30 samples"),
        ({"data": {"verifix_id": 3, "verifix_fingerprint": "0"}, "annotations": [{}]}, "other names or labels"),
        ({"data": {"image": FILES[0]}}, "has no labels"),
        ({"image": FILES[0]}, "is not a list of tasks"),
    ):
        (tmp_path / "wrong.json").write_text(json.dumps([task]))
        assert told in refused(capsys, "import", tmp_path / "wrong.json", *words, tmp_path / "w.jsonl")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ("file_name,label\nred/0.png,pink\n", "label 'pink', which is not among the classes"),
        ("file_name,label\nred/77.png,red\n", "none of the 30 samples"),
        ("id,label\n30,red\n", "has the id '30'; ids of"),
        ("id,file_name,label\n0,red/3.png,red\n", "names 2 samples"),
        ("name,label\nx,red\n", "no column id, file_name or text"),
        ("file_name,colour\nred/0.png,red\n", "no column 'label'"),
    ],
    ids=range(6),
)
def test_manifests_are_checked_against_the_data_set(photos, tmp_path, capsys, rows, told):
    (tmp_path / "m.csv").write_text(rows)
    words = ["--format", "manifest", "--data", photos, *CLASSES, "--out", tmp_path / "x.jsonl"]
    assert told in refused(capsys, "import", tmp_path / "m.csv", *words)
    assert not (tmp_path / "x.jsonl").exists()


def test_files_of_one_name_are_told_apart_by_their_folders(photos, tmp_path, capsys):
    for name in NAMES:  # each class has a 0.png now
        if name != "red":
            shutil.copy(photos / "red" / "0.png", photos / name / "0.png")
    words = ["--format", "manifest", "--data", photos, *CLASSES, "--out"]
    names = sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    (tmp_path / "m.csv").write_text("file_name,label\nstore/photos/green/0.png,blue\nred/0,red\n")
    run(capsys, "import", tmp_path / "m.csv", *words, tmp_path / "m.jsonl")
    assert read_decisions(tmp_path / "m.jsonl").labels == {
        names.index("green/0.png"): "blue",
        names.index("red/0.png"): "red",
    }
    for name, told in (("0.png", "3 (blue/0.png, green/0.png, red/0.png)"), ("pink/0.png", "none of the 32 samples")):
        (tmp_path / "m.csv").write_text(f"file_name,label\n{name},blue\n")
        assert told in refused(capsys, "import", tmp_path / "m.csv", *words, tmp_path / "x.jsonl")


def test_texts_go_out_and_come_back(tmp_path, capsys):
    rows = [{"text": f"film {i}", "label": "ab"[i % 2]} for i in range(6)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = header(tmp_path / "t.jsonl", [None] * 6, [0, 1] * 3, ["a", "b"], options={"texts": True})
    verified = write(tmp_path / "v.jsonl", head, record(1, "b", "a"), record(4, "a"))
    out = export(capsys, verified, "cleaned", tmp_path / "c.csv")
    assert pd.read_csv(out).label.tolist() == ["a", "a", "a", "b", "a", "b"]
    tasks = json.loads(export(capsys, verified, "label-studio", tmp_path / "t.json").read_text())
    assert [task["data"]["text"] for task in tasks] == ["film 1", "film 4"]
    (tmp_path / "m.csv").write_text("text,label\nfilm 3,a\n")
    words = ["--format", "manifest", "--data", tmp_path / "t.jsonl", "--classes", "a,b", "--out"]
    run(capsys, "import", tmp_path / "m.csv", *words, tmp_path / "i.jsonl")
    assert read_decisions(tmp_path / "i.jsonl").labels == {3: "a"}
    for form, name in (("fiftyone", "l.json"), ("huggingface", "m.jsonl")):
        assert "no files of their own" in refused(
            capsys, "export", verified, "--format", form, "--out", tmp_path / name
        )


def test_what_cannot_be_exchanged_is_refused(photos, verified, tmp_path, capsys):
    queue = queue_of(photos, tmp_path, verified)
    assert "nothing was decided" in refused(capsys, "export", queue, "--format", "cleaned", "--out", tmp_path / "c.csv")
    assert "writes a .npy, .csv, .parquet file" in refused(
        capsys, "export", verified, "--format", "cleanlab", "--out", tmp_path / "c.jsonl"
    )
    assert "exists already" in refused(capsys, "export", verified, "--format", "cleaned", "--out", queue)
    assert "is an input" in refused(capsys, "export", verified, "--format", "manifest", "--out", verified, "--force")
    words = ["import", verified, "--format", "manifest", "--out", tmp_path / "x.jsonl"]
    assert "one of --data and --queue" in refused(capsys, *words)
    assert "one of --data and --queue" in refused(capsys, *words, "--data", photos, "--queue", queue)
    assert "does not exist" in refused(
        capsys, "import", tmp_path / "no.csv", "--format", "manifest", "--queue", queue, "--out", tmp_path / "x.jsonl"
    )
    (photos / "red" / "0.png").rename(photos / "red" / "zero.png")
    assert "other file names or labels" in refused(
        capsys, "export", verified, "--format", "cleaned", "--out", tmp_path / "c.csv"
    )
    moved = photos.rename(tmp_path / "moved")
    (moved / "red" / "zero.png").rename(moved / "red" / "0.png")
    run(capsys, "export", verified, "--format", "cleaned", "--out", tmp_path / "c.csv", "--pool", moved)
