"""Numbers of any size and files of any bytes: finite results, or an error of this library, and nothing else.

``VERIFIX_FUZZ=long`` runs thousands of examples instead of the few that every run of the tests takes.
"""

from __future__ import annotations

import contextlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

import verifix
from tests import hostile, tiny
from tests.hostile import archive, flipped, legacy, npz, pickled, png, safetensors
from verifix import Correction, VerifixError
from verifix.capture.saved_moments import SavedMoments
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.options import DataOptions
from verifix.losses import best_sharpness, correct_or_not, cross_entropy, tempered_cross_entropy
from verifix.moments import Moments, merge
from verifix.projection import ALPHA_RANGE, eigenvalues, prepare
from verifix.recipe.candidates import Listed
from verifix.recipe.decision import MINIMAL_GAIN, Raced, Scores, choose, point_of
from verifix.recipe.paths import Path as TriedPath
from verifix.recipe.paths import decide
from verifix.storage.tensors import read_safetensors, read_torch

RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

seeds = st.integers(0, 2**32 - 1)
scales = st.integers(-30, 30).map(lambda exponent: 10.0**exponent)
alphas = st.floats(*np.log10(ALPHA_RANGE)).map(
    lambda exponent: min(max(10.0**exponent, ALPHA_RANGE[0]), ALPHA_RANGE[1])
)


def rows_of(seed: int, groups: int, n: int, width: int, scale: float, rank: int, shift: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(groups, n, rank, dtype=torch.float64, generator=generator)
    right = torch.randn(groups, rank, width, dtype=torch.float64, generator=generator)
    return scale * (left @ right + shift)


sizes = st.fixed_dictionaries(
    {
        "seed": seeds,
        "groups": st.integers(1, 3),
        "n": st.integers(1, 12),
        "width": st.integers(1, 9),
        "scale": scales,
        "rank": st.integers(1, 9),
        "shift": st.sampled_from([0.0, 1.0, 1e6]),
    }
)


@given(sizes, alphas, scales)
def test_a_projection_shrinks_and_stays_finite_at_every_scale(size, alpha, scale):
    moments = Moments(rows_of(**size))
    weight = scale * torch.randn(size["groups"], 4, size["width"], dtype=torch.float64)
    found = prepare(weight, moments).project(alpha)
    assert torch.isfinite(found).all()
    # The eigenvalues of P are within 0 and 1, so no row of W grows; alpha · eps is what rounding may add.
    longest = weight.norm(dim=2) * (1 + 1e-9 + 100 * max(alpha, 1.0) * 2.3e-16)
    assert (found.norm(dim=2) <= longest).all()


@given(sizes, alphas)
def test_the_eigenvalues_of_the_projection_are_within_0_and_1(size, alpha):
    moments = Moments(rows_of(**size))
    r = eigenvalues(moments)
    assert ((r >= 0) & (r <= 1)).all()
    eye = torch.eye(size["width"], dtype=torch.float64).expand(size["groups"], -1, -1)
    p = prepare(eye, moments).project(alpha)
    of_p = torch.linalg.eigvals(p[moments.trace > 0])
    slack = 1e-9 + 100 * max(alpha, 1 / alpha if alpha < 1 else 1.0) * 2.3e-16
    assert (of_p.imag.abs() <= slack).all()
    assert ((of_p.real >= -slack) & (of_p.real <= 1 + slack)).all()


@given(st.lists(st.tuples(st.integers(0, 6), scales), min_size=1, max_size=5), st.integers(1, 7), seeds, st.data())
def test_moments_merge_to_the_same_in_any_order(parts, width, seed, data):
    generator = torch.Generator().manual_seed(seed)
    rows = [scale * torch.randn(1, n, width, dtype=torch.float64, generator=generator) for n, scale in parts]
    order = data.draw(st.permutations(range(len(rows))))
    found = merge([Moments(rows[i]) for i in order])
    whole = torch.cat(rows, dim=1)
    assert found.n == whole.shape[1]
    size = float(whole.square().sum())
    assert torch.isfinite(found.gram).all()
    assert float((found.gram - whole.mT @ whole).abs().max()) <= 1e-12 * size
    assert float((found.trace - size).abs()) <= 1e-12 * size
    assert float(torch.linalg.eigvalsh(found.gram).min()) >= -1e-12 * size


numbers = st.floats(-1e6, 1e6, width=32)


@given(st.integers(2, 8), st.integers(1, 5), seeds)
def test_no_choice_is_worse_than_no_change(n, count, seed):
    generator = np.random.default_rng(seed)
    size = 10.0 ** generator.integers(-8, 8)

    def scores() -> Scores:
        values = torch.tensor(generator.integers(0, 2, n), dtype=torch.float64)
        return Scores(torch.tensor(size * generator.normal(0, 1, n)), float(values.mean()), values)

    baseline, every = scores(), {float(i + 1): scores() for i in range(count)}
    choice = choose(baseline, lambda _: Raced(every), Listed(tuple(every)))
    lowest = min(every.values(), key=lambda one: float(one.losses.mean()))
    gain = float((baseline.losses - lowest.losses).mean())
    assert (choice.strength is not None) is (gain > MINIMAL_GAIN)
    assert choice.strength is None or every[choice.strength] is lowest
    assert len(choice.points) == count + 1
    points = {strength: point_of(None, one, baseline) for strength, one in every.items()}
    none = TriedPath({}, point_of(None, baseline, baseline))
    decision = decide([none, *(TriedPath({"project": strength}, point) for strength, point in points.items())])
    if decision.taken:
        point = decision.path.point
        assert decision.path.strengths["project"] == choice.strength
        assert point.loss_gain > MINIMAL_GAIN
        assert point.loss_gain > point.standard_error  # and more, as it has to be sure
        assert point.score >= baseline.score


@given(st.integers(1, 12), st.integers(1, 6), st.integers(-300, 300), seeds)
def test_any_finite_logits_can_be_scored(n, outputs, exponent, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, outputs, dtype=torch.float64, generator=generator) * 10.0**exponent
    labels = torch.randint(0, max(outputs, 2), (n,), generator=generator)
    assert torch.isfinite(cross_entropy(logits, labels)).all()
    assert np.isfinite(best_sharpness(logits, labels))
    tempered = tempered_cross_entropy(logits, labels)
    assert torch.isfinite(tempered).all()
    assert float(tempered.mean()) <= float(np.log(max(outputs, 2))) + 1e-9
    assert ((correct_or_not(logits, labels) == 0) | (correct_or_not(logits, labels) == 1)).all()


def tar_file() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        members = {"a.png": tiny.png("red"), "a.cls": b"1", "b.png": tiny.png("red"), "b.json": b'{"label": 2}'}
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def parquet_file() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"bytes": tiny.png("red", i), "path": None} for i in range(3)]
    return hostile.saved(lambda buffer: pq.write_table(pa.table({"image": rows, "label": [0, 1, 2]}), buffer))


def own_file(kind: str) -> bytes:
    """A file of moments or of a correction."""
    import tempfile

    data = hostile.samples()
    samples = torch.tensor(data["x"]), torch.tensor(data["y"])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "own.safetensors"
        if kind == "moments":
            verifix.collect_moments(hostile.net().eval(), samples, progress=False).save(path)
        else:
            verifix.correct(hostile.net().eval(), samples, alpha=9, progress=False).save(path)
        return path.read_bytes()


def every_sample(path: Path) -> None:
    """Read all samples of a file, as the command line does."""
    source = open_data(path, DataOptions(classes="red,green,blue" if path.is_dir() else None))
    for i in range(min(len(source.dataset), 8)):  # type: ignore[arg-type]
        source.dataset[i]


STATE = dict(hostile.net().state_dict())
PICTURES = {
    kind: hostile.saved(lambda buffer, kind=kind: tiny.picture("red", 0).save(buffer, kind))
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
}
READERS: dict[str, tuple[str, bytes, Callable[[Path], object]]] = {
    # what it reads: the file's name, a valid one, and the reader
    "safetensors": ("c.safetensors", save(STATE), read_safetensors),
    "safetensors checkpoint": ("c.safetensors", save(STATE), read_checkpoint),
    "pt": ("c.pt", hostile.saved(lambda buffer: torch.save(STATE, buffer)), read_torch),
    "pt checkpoint": ("c.pt", hostile.saved(lambda buffer: torch.save({"state_dict": STATE}, buffer)), read_checkpoint),
    "old pt": (
        "c.pt",
        hostile.saved(lambda buffer: torch.save(STATE, buffer, _use_new_zipfile_serialization=False)),
        read_checkpoint,
    ),
    "pickle in an archive": ("c.pt", archive(pickled({"a": {"b": [1, 2.5, "c", None, (True,)]}})), read_checkpoint),
    "pickle of old": ("c.pt", legacy(pickled({"a": [1, 2.5, "c"]})), read_checkpoint),
    "index": ("m.safetensors.index.json", b'{"metadata": {}, "weight_map": {"a": "c.safetensors"}}', read_checkpoint),
    "moments": ("m.safetensors", own_file("moments"), SavedMoments.load),
    "correction": ("k.safetensors", own_file("correction"), Correction.load),
    "npz": ("d.npz", hostile.saved(lambda buffer: np.savez(buffer, **hostile.samples(4))), every_sample),
    "npz of names": (
        "d.npz",
        hostile.saved(lambda b: np.savez(b, x=np.zeros((2, 3)), y=np.array(["1", "0"]))),
        every_sample,
    ),
    "csv": ("d.csv", b'file_name,label\r\na.png,0\r\n"a.png",1\r\n', every_sample),
    "manifest": (
        "d.csv",
        b"file_name,given_label,verified_label,status\na.png,1,,ok\na.png,1,2,relabel\n",
        every_sample,
    ),
    "json lines": (
        "d.jsonl",
        b'{"file_name": "a.png", "label": 1}\n{"file_name": "a.png", "label": 0}\n',
        every_sample,
    ),
    "parquet": ("d.parquet", parquet_file(), every_sample),
    "tar": ("d.tar", tar_file(), every_sample),
    **{f"image {kind}": ("set/red/a.png", content, every_sample) for kind, content in PICTURES.items()},
}


def read_or_refuse(folder: Path, name: str, content: bytes, read: Callable[[Path], object]) -> None:
    """Read a file; the only error that may come out is one of this library."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    with contextlib.suppress(VerifixError):
        read(folder / "set" if name.startswith("set/") else path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(tiny.png("red"))
    (tmp_path / "c.safetensors").write_bytes(save({"a": torch.ones(2)}))
    return tmp_path


@pytest.mark.parametrize("kind", READERS)
def test_a_valid_file_is_read(folder, kind):
    name, content, read = READERS[kind]
    if kind.startswith("pickle"):
        return  # valid, but no state dict
    read_or_refuse(folder, name, content, read)
    path = folder / name
    read(folder / "set" if name.startswith("set/") else path)


def mutated(content: bytes, data: st.DataObject) -> bytes:
    """A valid file with some bytes turned, taken out, doubled, or put in."""
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        if not content:
            return content
        place = data.draw(st.integers(0, len(content) - 1), label="place")
        length = data.draw(st.sampled_from([1, 2, 4, 8, 100, 1000]), label="length")
        change = data.draw(st.sampled_from(["flip", "cut", "end", "double", "fill", "insert"]), label="change")
        if change == "flip":
            content = flipped(content, place, data.draw(st.integers(1, 255), label="bits"))
        elif change == "cut":
            content = content[:place] + content[place + length :]
        elif change == "end":
            content = content[:place]
        elif change == "double":
            content = content[: place + length] + content[place:]
        elif change == "fill":
            value = data.draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"9", b"[", b'"', b"-"]), label="value")
            content = content[:place] + value * min(length, len(content) - place) + content[place + length :]
        else:
            content = content[:place] + data.draw(st.binary(max_size=12), label="new") + content[place:]
    return content


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", READERS)
@RELAXED
@given(data=st.data())
def test_a_changed_file_is_read_or_refused(folder, kind, data):
    name, content, read = READERS[kind]
    read_or_refuse(folder, name, mutated(content, data), read)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [kind for kind in READERS if " " not in kind or kind == "image PNG"])
@RELAXED
@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(folder, kind, content):
    name, _, read = READERS[kind]
    read_or_refuse(folder, name, content, read)


words = st.one_of(st.text(max_size=8), st.integers(-(2**70), 2**70), st.floats(), st.none(), st.booleans())
nests = st.recursive(
    words, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


@RELAXED
@given(entries=st.dictionaries(st.text(max_size=5), nests, max_size=4), data=st.binary(max_size=40))
def test_any_header_of_safetensors_is_read_or_refused(folder, entries, data):
    read_or_refuse(folder, "c.safetensors", safetensors(entries, data), read_checkpoint)


@RELAXED
@given(
    shape=st.lists(st.integers(-2, 2**65), max_size=3),
    begin=st.integers(-2, 40),
    end=st.integers(-2, 2**65),
    dtype=st.sampled_from(["F32", "F64", "BF16", "I8", "BOOL", "U16", "F8_E4M3", "F4", "C64", "X"]),
)
def test_any_tensor_of_safetensors_is_read_or_refused(folder, shape, begin, end, dtype):
    header = {"a": {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}}
    read_or_refuse(folder, "c.safetensors", safetensors(header, bytes(32)), read_checkpoint)


@pytest.mark.filterwarnings("ignore")
@RELAXED
@given(content=nests)
def test_any_plain_content_of_a_pt_file_is_read_or_refused(folder, content):
    read_or_refuse(folder, "c.pt", archive(pickled(content)), read_checkpoint)


@RELAXED
@given(labels=st.lists(nests, min_size=1, max_size=4), classes=st.none() | st.just("red,green,blue"))
def test_any_labels_are_read_or_refused(folder, labels, classes):
    from verifix.model.class_names import class_numbers

    names = None if classes is None else classes.split(",")
    try:
        found = class_numbers(labels, names, "m.csv", "line {}".format)
    except VerifixError:
        return
    assert len(found) == len(labels)
    assert all(type(number) is int for number in found)


@RELAXED
@given(cells=st.lists(st.tuples(st.text(max_size=10), st.text(max_size=10)), max_size=4), mark=st.sampled_from(",;\t"))
def test_any_text_in_a_table_is_read_or_refused(folder, cells, mark):
    text = "".join(f"{a}{mark}{b}\n" for a, b in [("file_name", "label"), *cells])
    read_or_refuse(folder, "d.csv", text.encode("utf-8", "surrogatepass"), every_sample)


@RELAXED
@given(
    width=st.integers(0, 2**32 - 1),
    height=st.integers(0, 2**32 - 1),
    depth=st.integers(0, 255),
    colour=st.integers(0, 7),
)
def test_any_head_of_a_png_is_read_or_refused(folder, width, height, depth, colour):
    assume(width * height < 2**20 or width * height > 2**28)  # between them an image is just large
    read_or_refuse(folder, "set/red/a.png", png(width, height, depth, colour), every_sample)


@pytest.mark.filterwarnings("ignore")
@RELAXED
@given(header=st.text(max_size=60), content=st.binary(max_size=64))
def test_any_header_of_an_array_is_read_or_refused(folder, header, content):
    from tests.hostile import npy

    array = npy(header.encode("latin-1", "replace").decode("latin-1"), content)
    read_or_refuse(folder, "d.npz", npz(x=array, y=array), every_sample)
