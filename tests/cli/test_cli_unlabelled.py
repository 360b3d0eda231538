"""--unlabelled and --noisy: every kind of data, with and without labels, and what the command makes of it."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests import tiny
from tests.cli.test_cli import NORMALISE, arguments, encoded, images, run, world, write_parquet  # noqa: F401
from verifix.errors import DataError
from verifix.io.data.open import open_data
from verifix.io.data.preprocessing import prepare
from verifix.io.options import DataOptions
from verifix.model.labels import UNKNOWN
from verifix.model.samples import read_samples

PIXELS = images(12, 5)[0]


def write(kind: str, root, labels: bool) -> str:
    """Write the same pictures in one of the formats, with labels or without."""
    names, path = [f"{i}.png" for i in range(12)], root / f"u.{kind}"
    if kind == "folder":
        for i, pixels in enumerate(PIXELS):
            folder = root / "u" / str(i % 3) if labels else root / "u"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{i}.png").write_bytes(encoded(pixels))
        return str(root / "u")
    if kind == "npz":
        np.savez(path, x=PIXELS, **({"y": np.arange(12) % 3} if labels else {}))
        return str(path)
    if kind == "tar":
        kinds = {"png": lambda i: encoded(PIXELS[i])} | ({"cls": lambda i: i % 3} if labels else {})
        return tiny.write_shards(root, 2, 6, **kinds)
    if kind == "saved":
        import datasets

        data = datasets.Dataset.from_dict({"image": [{"bytes": encoded(p), "path": None} for p in PIXELS]})
        data = data.add_column("label", [i % 3 for i in range(12)]) if labels else data
        tiny.quietly(data.cast_column("image", datasets.Image()).save_to_disk, root / "saved")
        return str(root / "saved")
    if kind == "parquet":
        table = pa.table({"image": [{"bytes": encoded(p), "path": None} for p in PIXELS]})
        pq.write_table(table.append_column("label", pa.array(range(12))) if labels else table, path)
        return str(path)
    for name, pixels in zip(names, PIXELS, strict=True):
        (root / name).write_bytes(encoded(pixels))
    rows = [{"file_name": name} | ({"label": "any"} if labels else {}) for name in names]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(map(json.dumps, rows) if kind == "jsonl" else lines) + "\n")
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("kind", ["folder", "npz", "tar", "saved", "parquet", "csv", "jsonl"])
def test_every_kind_of_data_needs_no_labels(kind, labels, tmp_path, capsys):
    options = DataOptions()
    samples = read_samples(
        open_data(write(kind, tmp_path, labels), options, prepare(None, "", options), labelled=False)
    )
    assert samples.labels.tolist() == [UNKNOWN] * 12
    expected = torch.from_numpy(PIXELS).permute(0, 3, 1, 2) / 255
    found = next(samples.batches(range(12), 12)).inputs
    order = [0, 3, 6, 9, 1, 10, 4, 7, 11, 2, 5, 8] if kind == "folder" and labels else range(12)
    order = [0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9] if kind == "folder" and not labels else order
    assert torch.allclose(found, expected[list(order)], atol=1e-6)
    assert "left out" not in capsys.readouterr().err


def test_a_manifest_gives_all_rows_but_those_that_were_skipped(tmp_path, capsys):
    for i in range(4):
        (tmp_path / f"{i}.png").write_bytes(encoded(PIXELS[i]))
    rows = ["file_name,verified_label,status", "0.png,1,ok", "1.png,,", "2.png,,unsure", "3.png,,skip"]
    (tmp_path / "m.csv").write_text("\n".join(rows) + "\n")
    samples = read_samples(open_data(tmp_path / "m.csv", DataOptions(), labelled=False))
    assert [samples.where(i).partition(" ")[0][-5:] for i in range(3)] == ["0.png", "1.png", "2.png"]
    assert len(samples) == 3
    assert "1 of 4 rows" in capsys.readouterr().err
    assert len(read_samples(open_data(tmp_path / "m.csv", DataOptions()))) == 1


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no images; images end in"):
        open_data(tmp_path, DataOptions(), labelled=False)


def test_texts_need_no_labels(vision, tmp_path, capsys):
    model = tiny.text_model(tmp_path / "net", train=True)
    texts, labels = tiny.sentences(90, 1)
    lines = ["text,label", *(f"{text},{label}" for text, label in zip(texts, labels, strict=True))]
    (tmp_path / "verified.csv").write_text("\n".join(lines) + "\n")
    others, given = tiny.sentences(60, 3)
    (tmp_path / "others.csv").write_text("\n".join(["text", *others[:40], texts[0]]) + "\n")
    lines = [json.dumps({"text": text, "label": label}) for text, label in zip(others[20:], given[20:], strict=True)]
    (tmp_path / "noisy.jsonl").write_text("\n".join(lines) + "\n")
    words = f"""correct --model hf:{model} --verified {tmp_path}/verified.csv --verified-from unseen --proof none --json
        --unlabelled {tmp_path}/others.csv --noisy {tmp_path}/noisy.jsonl --recipe project_unlabelled --alpha 20
        --out {tmp_path}/fixed"""
    found = run(words.split(), capsys)
    assert found[0] == 0, found[2]
    provenance = json.loads(found[1])["provenance"]
    different = len({*others, texts[0]} - set(texts))
    assert different <= provenance["unlabelled"] <= 60
    assert provenance["unlabelled_noisy"] <= 40
    assert "unlabelled samples are verified or test samples, and were left out" in found[2]


@pytest.fixture
def given(world, tmp_path):  # noqa: F811
    """Unlabelled pictures, of which five are verified and three test samples."""
    pixels, verified, test = images(40, 9)[0], images(60, 1)[0], images(30, 2)[0]
    table = pa.table({"image": [{"bytes": encoded(p), "path": None} for p in (*pixels, *verified[:5], *test[:3])]})
    pq.write_table(table, tmp_path / "others.parquet")
    write_parquet(tmp_path / "noisy.parquet", images(50, 11)[0], np.roll(images(50, 11)[1], 5))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("proof", ["none", "split", "nested", "test"])
def test_a_command_uses_inputs_that_no_gain_is_measured_on(world, given, capsys, proof):  # noqa: F811
    measured = {"test": world / "test.parquet", "proof": None} if proof == "test" else {"proof": proof}
    changes = {"recipe": "project_unlabelled", "alpha": 30, "drawn": "random", "result": given / "result.json"}
    extra = {"unlabelled": given / "others.parquet", "noisy": given / "noisy.parquet"}
    argv = arguments(world, given / "fixed.safetensors", **(changes | extra | measured))
    code, _, messages = run([*argv, "--force", "--no-check-inputs"], capsys)
    assert code == 0, messages
    result = json.loads((given / "result.json").read_text())
    about = result["provenance"]
    out = 8 if proof == "test" else 5
    assert (about["unlabelled"], about["unlabelled_noisy"]) == (98 - out, 50)
    told = f"{out} of the 48 unlabelled samples are verified or test samples, and were left out."
    assert told in result["notes"]
    assert {"unlabelled", "noisy"} <= result["files"].keys()
    assert len(result["files"]["unlabelled"]["sha256"]) == 64
    assert "--unlabelled" in result["command"]


def test_noisy_samples_need_labels(world, given, capsys):  # noqa: F811
    argv = arguments(world, given / "fixed.safetensors", noisy=given / "others.parquet")
    code, _, messages = run(argv, capsys)
    assert code == 5
    assert "others.parquet has no column 'label'" in messages


def test_groups_are_wanted_of_every_set(world, given, capsys):  # noqa: F811
    table = pq.read_table(world / "verified.parquet")
    pq.write_table(table.append_column("patient", pa.array(range(60))), given / "grouped.parquet")
    argv = arguments(
        world, given / "f.safetensors", verified=given / "grouped.parquet", unlabelled=given / "others.parquet"
    )
    code, _, messages = run([*argv, "--groups", "patient"], capsys)
    assert code == 5
    assert "others.parquet has no column 'patient'" in messages
