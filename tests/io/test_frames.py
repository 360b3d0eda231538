"""Images with several frames or pages: the first is read, and that is said once, with the count."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tests import tiny
from tests.io.test_data import labels_of
from tests.io.test_malformed_data import NET
from verifix import DataError
from verifix.cli.main import main
from verifix.io.data.open import open_data
from verifix.io.options import DataOptions

DEFAULT = DataOptions()
FORMS = {"GIF": "gif", "WEBP": "webp", "PNG": "apng", "TIFF": "tiff", "AVIF": "avif"}


def encoded(form: str, frames: int, seed: int = 0) -> bytes:
    first, *others = (tiny.picture(tiny.NAMES[(seed + i) % 3], seed) for i in range(frames))
    buffer = io.BytesIO()
    first.save(buffer, form, **({"save_all": True, "append_images": others} if others else {}))
    return buffer.getvalue()


def folder(root, form, several):
    (root / "0").mkdir(parents=True)
    for i in range(4):
        (root / "0" / f"{i}.{FORMS[form]}").write_bytes(encoded(form, 3 if i in several else 1, i))
    return root


def told(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if "frames" in line]


@pytest.mark.parametrize("form", FORMS)
def test_the_first_frame_is_read_and_the_count_is_told_once(form, tmp_path, capsys):
    source = open_data(folder(tmp_path, form, {1, 3}), DEFAULT)
    assert labels_of(source) == 4 * [0]
    (line,) = told(capsys)
    path = tmp_path / "0" / f"1.{FORMS[form]}"
    assert line.endswith(f"{tmp_path}: of 2 images with several frames, only the first is read; the first is {path}")
    with Image.open(io.BytesIO(encoded(form, 3, 1))) as image:
        wanted = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255
    assert torch.equal(source.dataset[1][0], wanted)


@pytest.mark.parametrize("form", FORMS)
def test_images_of_one_frame_are_not_told(form, tmp_path, capsys):
    labels_of(open_data(folder(tmp_path, form, set()), DEFAULT))
    assert told(capsys) == []


def table(tmp_path, images):
    rows = [{"image": {"bytes": image, "path": None}, "label": 0} for image in images]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    return tmp_path / "t.parquet", "the image in row 1 of "


def shard(tmp_path, images):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for i, image in enumerate(images):
            for name, content in ((f"{i}.gif", image), (f"{i}.cls", b"0")):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return tmp_path / "s.tar", "1.gif in "


def manifest(tmp_path, images):
    for i, image in enumerate(images):
        (tmp_path / f"{i}.gif").write_bytes(image)
    lines = [json.dumps({"file_name": f"{i}.gif", "label": 0}) for i in range(len(images))]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    return tmp_path / "t.jsonl", f"{tmp_path}/1.gif in line 2 of "


@pytest.mark.parametrize("container", [table, shard, manifest])
def test_every_container_tells(container, tmp_path, capsys):
    path, place = container(tmp_path, [encoded("GIF", 1 + (i == 1), i) for i in range(3)])
    labels_of(open_data(path, DEFAULT))
    (line,) = told(capsys)
    assert f"of 1 image with several frames, only the first is read; the first is {place}" in line


def test_a_damaged_second_frame_leaves_the_first_as_it_is(tmp_path, capsys):
    whole = encoded("GIF", 3)
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "a.gif").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "0" / "b.gif").write_bytes(encoded("GIF", 1))
    source = open_data(tmp_path, DEFAULT)
    assert labels_of(source) == [0, 0]
    assert torch.equal(source.dataset[0][0], source.dataset[1][0])


def test_pictures_beside_that_of_a_camera_are_no_frames(tmp_path, capsys):
    (tmp_path / "0").mkdir()
    for i in range(2):
        (tmp_path / "0" / f"{i}.jpg").write_bytes(encoded("MPO", 2, i))
    labels_of(open_data(tmp_path, DEFAULT))
    assert told(capsys) == []


@pytest.mark.parametrize("mode", ["F", "I"])
def test_images_of_floats_and_32_bits_are_refused_by_name(mode, tmp_path):
    (tmp_path / "0").mkdir()
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).convert(mode).save(tmp_path / "0" / "a.tiff")
    with pytest.raises(
        DataError, match=r"a.tiff has 32 bits a channel, whose range is not known; save it with 8 or 16"
    ):
        open_data(tmp_path, DEFAULT).dataset[0]


def test_the_score_holds_the_note(tmp_path, capsys):
    (tmp_path / "net.py").write_text(NET)
    path = folder(tmp_path / "data", "GIF", {0})
    model = ["--model", f"py:{tmp_path}/net.py:build"]
    namespace: dict = {}
    exec(NET, namespace)
    torch.save(namespace["build"]().state_dict(), tmp_path / "net.pt")
    assert main(["score", f"{tmp_path}/net.pt", *model, "--data", str(path), "--json"]) == 0
    notes = json.loads(capsys.readouterr().out)["notes"]
    assert len([line for line in notes if "of 1 image with several frames" in line]) == 1
