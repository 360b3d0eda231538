from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import verifix
from tests.checkpoint_cases import write_with
from verifix.cli.main import main
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.options import DataOptions

MODEL = """
from torch import nn

def build():
    features = nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(*features, nn.Flatten(), nn.Linear(32, 3))

def broken():
    raise RuntimeError("no\\nluck")

def number():
    return 7
"""
COLOURS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200]])
NORMALISE = ["--mean", "0.491,0.482,0.447", "--std", "0.247,0.243,0.262"]


def images(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    noise = generator.normal(0, 40, (n, 10, 10, 3))
    return (COLOURS[labels][:, None, None] + noise).clip(0, 255).astype(np.uint8), labels


def encoded(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path: Path, pixels: np.ndarray, labels, column: str = "label") -> None:
    rows = [{"bytes": encoded(p), "path": None} for p in pixels]
    pq.write_table(pa.table({"image": rows, column: list(map(int, labels))}), path)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Model file, checkpoint, verified and test data in every format."""
    root = tmp_path_factory.mktemp("world")
    (root / "net.py").write_text(MODEL)
    namespace: dict = {}
    exec(MODEL, namespace)
    torch.manual_seed(0)
    model = namespace["build"]()
    x, y = images(240, 0)
    wrong = np.where(np.arange(240) % 4 == 0, (y + 1) % 3, y)
    mean, std = np.array([0.491, 0.482, 0.447]), np.array([0.247, 0.243, 0.262])
    inputs = torch.from_numpy(((x / 255 - mean) / std).transpose(0, 3, 1, 2)).float()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), torch.from_numpy(wrong)).backward()
        optimizer.step()
    save_file(model.state_dict(), root / "net.safetensors", {"format": "pt", "made": "by hand"})
    torch.save(model.state_dict(), root / "net.pt")
    torch.save({"epoch": 3, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}, root / "nested.pth")
    for name, n, seed in (("verified", 60, 1), ("test", 30, 2)):
        pixels, labels = images(n, seed)
        write_parquet(root / f"{name}.parquet", pixels, labels)
        np.savez(root / f"{name}.npz", x=pixels, y=labels)
        for i, (p, label) in enumerate(zip(pixels, labels, strict=True)):
            for folder in (root / name / str(label), root / f"{name}-named" / ("zebra", "ant", "cow")[label]):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{i}.png").write_bytes(encoded(p))
    return root


def arguments(world: Path, out: Path, **changes) -> list[str]:
    settings = {
        "--model": f"py:{world / 'net.py'}:build",
        "--checkpoint": world / "net.safetensors",
        "--verified": world / "verified.parquet",
        "--verified-from": "unseen",
        "--recipe": "verifix",
        "--proof": "none",
        "--out": out,
    } | {f"--{k.replace('_', '-')}": v for k, v in changes.items()}
    return ["correct", *NORMALISE, *[str(a) for k, v in settings.items() if v is not None for a in (k, v)]]


def run(argv: list[str], capsys) -> tuple[int, str, str]:
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


def test_the_words_of_the_manual_work_as_a_real_process(world, tmp_path):
    command = Path(sys.executable).with_name("verifix")
    argv = [
        *arguments(world, tmp_path / "fixed.safetensors", alpha=None, test=world / "test.parquet"),
        "--force",
        "--json",
    ]
    result = subprocess.run([command, *argv], capture_output=True, text=True, timeout=300, check=False, cwd=tmp_path)
    data = json.loads(result.stdout)
    assert result.returncode == (0 if data["changed"] else 3), result.stderr
    assert {"samples", "before", "after", "gain"} == set(data["test"])
    assert "moments" in result.stderr
    assert {p.name for p in tmp_path.iterdir()} == (
        {"fixed.safetensors", "fixed.correction.safetensors"} if data["changed"] else set()
    )


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "nested.pth"])
def test_the_corrected_checkpoint_keeps_format_keys_nesting_and_untouched_tensors(world, tmp_path, capsys, name):
    out = tmp_path / f"fixed{Path(name).suffix}"
    before_bytes = (world / name).read_bytes()
    code, text, _ = run(arguments(world, out, checkpoint=world / name, alpha=100), capsys)
    assert code == 0
    assert f"Wrote {out}" in text
    assert (world / name).read_bytes() == before_bytes
    before, after = read_checkpoint(world / name), read_checkpoint(out)
    assert list(before.state) == list(after.state)
    correction = verifix.Correction.load(tmp_path / "fixed.correction.safetensors")
    for key, value in before.state.items():
        assert after.state[key].dtype == value.dtype
        assert torch.equal(after.state[key], correction.corrected.get(key, value)), key
    assert set(correction.corrected) == {"0.weight", "4.weight"}
    assert not torch.equal(after.state["0.weight"], before.state["0.weight"])
    if name == "nested.pth":
        content = torch.load(out, weights_only=True)
        assert content["epoch"] == 3
        assert set(content) == {"epoch", "state_dict", "optimizer"}
    if name == "net.safetensors":
        assert after.metadata["made"] == "by hand"
        provenance = json.loads(after.metadata["verifix"])
        assert provenance["alpha"] == 100
    assert out.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_the_same_run_gives_the_same_bytes(world, tmp_path, capsys):
    contents = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        run(arguments(world, tmp_path / folder / "fixed.safetensors", alpha=100), capsys)
        contents.append([p.read_bytes() for p in sorted((tmp_path / folder).iterdir())])
    assert contents[0] == contents[1]


def test_a_second_correction_is_refused_in_every_format(world, tmp_path, capsys):
    for suffix in ("safetensors", "pt"):
        out = tmp_path / f"once.{suffix}"
        assert run(arguments(world, out, checkpoint=world / f"net.{suffix}", alpha=100), capsys)[0] == 0
        argv = arguments(world, tmp_path / f"twice.{suffix}", checkpoint=out, alpha=100)
        code, text, err = run(argv, capsys)
        assert (code, text) == (5, "")
        assert "has been corrected already" in err
        (tmp_path / "once.correction.safetensors").unlink()


def test_score_agrees_with_the_test_figures(world, tmp_path, capsys):
    out = tmp_path / "fixed.safetensors"
    code, text, _ = run([*arguments(world, out, alpha=100, test=world / "test.parquet"), "--json"], capsys)
    test = json.loads(text)["test"]
    assert code == 0
    for checkpoint, key in ((world / "net.safetensors", "before"), (out, "after")):
        for data in ("test.parquet", "test.npz", "test"):
            argv = [
                "score",
                checkpoint,
                "--model",
                f"py:{world / 'net.py'}:build",
                "--data",
                world / data,
                *NORMALISE,
                "--json",
            ]
            code, text, _ = run(argv, capsys)
            assert code == 0
            assert json.loads(text)["accuracy"] == pytest.approx(test[key])
            assert json.loads(text)["samples"] == 30


def test_moments_of_one_run_serve_the_next(world, tmp_path, capsys):
    pixels, labels = images(40, 5)
    write_parquet(tmp_path / "more.parquet", pixels, labels)
    saved = tmp_path / "moments.safetensors"
    run(arguments(world, tmp_path / "a.safetensors", alpha=100, save_moments=saved), capsys)
    argv = arguments(world, tmp_path / "b.safetensors", alpha=100, moments=saved, verified=tmp_path / "more.parquet")
    code, text, _ = run([*argv, "--json"], capsys)
    assert code == 0
    assert [layer["rows"] for layer in json.loads(text)["layers"]] == [100 * 64, 100]


def test_training_samples_are_warned_about(world, tmp_path, capsys):
    argv = arguments(world, tmp_path / "a.safetensors", alpha=100, verified_from="training")
    _, text, _ = run([*argv, "--json"], capsys)
    assert "do not estimate accuracy on new data" in json.loads(text)["warning"]
    assert "--test" in json.loads(text)["warning"]


def without_verified(world: Path, out: Path, **changes) -> list[str]:
    return arguments(world, out, verified=None, verified_from=None, trusted=world / "given.npz", **changes)


@pytest.fixture(scope="module")
def given(world) -> Path:
    """The training samples with their wrong labels."""
    pixels, labels = images(240, 0)
    wrong = np.where(np.arange(240) % 4 == 0, (labels + 1) % 3, labels)
    np.savez(world / "given.npz", x=pixels, y=wrong)
    return world


@pytest.mark.parametrize("method", [None, "low-loss", "low-curvature", "confident"])
def test_samples_that_nobody_verified_are_picked_and_called_so(given, tmp_path, capsys, method):
    out = tmp_path / "a.safetensors"
    argv = without_verified(given, out, trust=method, trusted_count=91, alpha=100, test=given / "test.parquet")
    code, text, _ = run([*argv, "--json"], capsys)
    result = json.loads(text)
    assert code == 0
    assert result["trusted"] == {
        "method": method or "low-loss",
        "count": 91,
        "per_class": {"0": 31, "1": 30, "2": 30},
        "shortfall": {},
    }
    assert result["unverified"] is True
    assert result["provenance"]["verified_from"] == "trusted"
    assert result["provenance"]["samples"] == 91
    assert f"picked by {method or 'low-loss'}, and some of their labels are wrong" in result["warning"]
    assert "no gain is claimed" in result["warning"]
    assert {"before", "after", "gain", "samples"} == set(result["test"])
    assert "trusted" in json.loads(read_checkpoint(out).metadata["verifix"])["verified_from"]


def test_the_command_picks_what_the_call_picks(given, tmp_path, capsys):
    argv = without_verified(
        given, tmp_path / "a.safetensors", trusted_count=600, save_moments=tmp_path / "m.safetensors"
    )
    code, text, _ = run([*argv, "--json", "--alpha", "100"], capsys)
    result = json.loads(text)
    namespace: dict = {}
    exec(MODEL, namespace)
    model = namespace["build"]()
    model.load_state_dict(load_file(given / "net.safetensors"))
    source = open_data(given / "given.npz", DataOptions(mean=NORMALISE[1], std=NORMALISE[3]))
    trusted = verifix.trust(model, source, count=600, progress=False)
    correction = verifix.correct(model, trusted.source, verified_from="trusted", alpha=100.0, progress=False)
    assert code == 0
    assert result["trusted"] == trusted.as_dict()
    assert sum(trusted.shortfall.values()) == 360
    assert result["provenance"]["samples_sha256"] == correction.provenance["samples_sha256"]
    assert load_file(tmp_path / "a.safetensors")["4.weight"].equal(correction.corrected["4.weight"])
    assert verifix.SavedMoments.load(tmp_path / "m.safetensors")
    code, text, _ = run(without_verified(given, tmp_path / "b.safetensors", trusted_count=120), capsys)
    assert code in (0, 3)
    assert "120 of 240 samples trusted by low-loss; nobody verified their labels." in text
    assert "120 unverified samples (trusted)" in text
    assert ("give alpha as a number" in text) == (code == 3)
    assert "overstate the gain" not in text


def test_no_change_writes_nothing_and_says_so(world, tmp_path, capsys):
    pixels, labels = images(60, 1)
    write_parquet(tmp_path / "v.parquet", pixels, np.random.default_rng(0).permutation(labels))
    argv = arguments(world, tmp_path / "fixed.safetensors", verified=tmp_path / "v.parquet")
    code, text, _ = run([*argv, "--no-check-inputs"], capsys)
    assert code == 3
    assert "No change: no checkpoint was written" in text
    assert [p.name for p in tmp_path.iterdir()] == ["v.parquet"]


def test_settings_come_from_yaml_under_explicit_flags(world, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(
        "alpha: 50\nmean: [0.4, 0.4, 0.4]\nstd: [0.2, 0.2, 0.2]\ninclude: ['0.*', linear]\n"
    )
    argv = arguments(world, tmp_path / "a.safetensors", config=tmp_path / "c.yaml")
    kept = [a for a in argv if a not in NORMALISE or a == "correct"]
    _, text, _ = run([kept[0], "--config", tmp_path / "c.yaml", *kept[1:], "--json"], capsys)
    settings = json.loads(text)["provenance"]
    assert settings["alpha"] == 50
    assert settings["include"] == ["0.*", "linear"]
    out = tmp_path / "b.safetensors"
    kept[kept.index("--out") + 1] = str(out)
    _, text, _ = run(
        [kept[0], "--config", tmp_path / "c.yaml", *kept[1:], "--alpha", "7", "--include=0.*", "--json"], capsys
    )
    settings = json.loads(text)["provenance"]
    assert settings["alpha"] == 7
    assert settings["include"] == ["0.*"]


def test_inspect_lists_every_layer_and_estimates_memory(world, capsys):
    base = ["inspect", "--model", f"py:{world / 'net.py'}:build"]
    code, text, _ = run([*base, "--input-shape", "3,10,10"], capsys)
    assert code == 0
    assert "0.weight: would be corrected, conv2d, 64 rows per sample" in text
    assert "4.weight: would be corrected, linear, 1 rows per sample" in text
    assert "2 layers would be corrected" in text
    code, text, _ = run([*base, "--data", world / "verified.npz", "--exclude", "linear", "--json"], capsys)
    data = json.loads(text)
    assert code == 0
    assert data["parameters"][1]["reason"] == "not selected"
    moments, factors, space = 5 * 8 * 27 * 27, 8 * 27 * 27 + 2 * 8 * 27 * 8, 4 * 8 * 27 * 27 + 4 * 8 * 27 * 8
    assert data["memory_bytes"] == moments + factors + space + 3 * 4 * 27 * 8
    assert (data["passes"], data["file_bytes"]) == ([["0.weight"]], 0)
    assert run([*base, "--input-shape", "3,10,10", "--exclude", "*"], capsys)[0] == 4


def test_inspect_prints_the_passes_that_a_limit_of_memory_takes(world, capsys):
    base = ["inspect", "--model", f"py:{world / 'net.py'}:build", "--input-shape", "3,10,10", "--samples", "1000"]
    _, text, _ = run([*base, "--memory", "48kB"], capsys)
    assert "The moments take 2 passes over the samples, one per group of layers, and " in text
    assert "pass 1: 0.weight to 0.weight\npass 2: 4.weight to 4.weight" in text
    _, text, _ = run([*base, "--memory", "48kB", "--json"], capsys)
    data = json.loads(text)
    assert data["passes"] == [["0.weight"], ["4.weight"]]
    assert data["file_bytes"] == 5 * 8 * (27**2 + 32**2)
    code, _, err = run([*base, "--memory", "1kB"], capsys)
    assert code == 2
    assert "memory is 1 kB, but layer" in err


def bad_commands() -> dict:
    def change(**changes):
        return lambda world, tmp: arguments(world, tmp / "out.safetensors", **changes)

    def with_file(name, content, **changes):
        def make(world, tmp):
            (tmp / name).write_bytes(content if isinstance(content, bytes) else content(world))
            settings = {k: tmp / name if v is ... else v for k, v in changes.items()}
            return arguments(world, tmp / "out.safetensors", **settings)

        return make

    def with_npz(**arrays):
        def make(world, tmp):
            np.savez(tmp / "v.npz", **arrays)
            return arguments(world, tmp / "out.safetensors", verified=tmp / "v.npz")

        return make

    def with_table(table):
        def make(world, tmp):
            pq.write_table(pa.table(table), tmp / "v.parquet")
            return arguments(world, tmp / "out.safetensors", verified=tmp / "v.parquet")

        return make

    def with_checkpoint(edit, name="c.safetensors"):
        def make(world, tmp):
            state = load_file(world / "net.safetensors")
            state = edit(state)
            if name.endswith("pt"):
                torch.save(state, tmp / name)
            else:
                save_file(state, tmp / name)
            return arguments(world, tmp / f"out{Path(name).suffix}", checkpoint=tmp / name)

        return make

    def nan(state):
        state["4.weight"][0, 0] = float("nan")
        return state

    x, y = images(60, 1)
    good = [{"bytes": encoded(p), "path": None} for p in x]
    sizes = [{"bytes": encoded(p[: 10 - i % 2]), "path": None} for i, p in enumerate(x)]
    broken = [*good[:7], {"bytes": good[7]["bytes"][:60], "path": None}, *good[8:]]
    labels = [int(v) for v in y]
    return {
        "too few": (with_table({"image": good[:49], "label": labels[:49]}), 5, "49 verified samples"),
        "label range": (with_table({"image": good, "label": [v + 1 for v in labels]}), 5, "has label 3"),
        "float label": (with_table({"image": good, "label": [v + 0.5 for v in labels]}), 5, "row 0 of"),
        "no label": (with_table({"image": good, "label": [None, *labels[1:]]}), 5, "has the label None"),
        "no label column": (with_table({"image": good, "y": labels}), 5, "no column 'label' (it has image, y)"),
        "no image column": (with_table({"picture": good, "label": labels}), 5, "no column 'image'"),
        "image is text": (with_table({"image": ["a"] * 60, "label": labels}), 5, "is not a file; correct the name"),
        "unreadable image": (with_table({"image": broken, "label": labels}), 5, "the image in row 7 of"),
        "null image": (with_table({"image": [None, *good[1:]], "label": labels}), 5, "the image in row 0 of"),
        "sizes differ": (with_table({"image": sizes, "label": labels}), 5, "give --size"),
        "parquet of nothing": (with_file("v.parquet", b"PAR1", verified=...), 5, "v.parquet is not a readable Parquet"),
        "npz of nothing": (with_file("v.npz", b"PK nonsense", verified=...), 5, "v.npz is not a readable .npz"),
        "npz shapes": (with_npz(x=np.zeros((60, 3)), y=y), 5, "these --mean and --std are for images"),
        "npz pair": (with_npz(x=x, y=y[:50]), 5, "inputs [60, 10, 10, 3] and labels [50]"),
        "npz names": (with_npz(x=x, answers=y), 5, "has the arrays x, answers"),
        "npz pickle": (with_npz(x=x, y=np.array([{}] * 60, dtype=object)), 5, "is not a readable .npz"),
        "npz floats": (with_npz(x=x, y=y / 2), 5, "has labels of float64, and label 1 is 0.5"),
        "npz nan": (with_npz(x=np.full((60, 3, 10, 10), np.nan, np.float32), y=y), 5, "sample 0 contains NaN"),
        "no data": (change(verified="nowhere.parquet"), 2, "nowhere.parquet does not exist"),
        "data kind": (with_file("v.txt", b"", verified=...), 2, "v.txt has no known data format"),
        "no model file": (change(model="py:nowhere.py:build"), 2, "nowhere.py does not exist"),
        "no factory": (
            lambda w, t: arguments(w, t / "o.safetensors", model=f"py:{w / 'net.py'}:make"),
            2,
            "no function 'make'",
        ),
        "broken factory": (
            lambda w, t: arguments(w, t / "o.safetensors", model=f"py:{w / 'net.py'}:broken"),
            2,
            "no luck",
        ),
        "not a model": (
            lambda w, t: arguments(w, t / "o.safetensors", model=f"py:{w / 'net.py'}:number"),
            2,
            "returned a int",
        ),
        "model scheme": (change(model="keras:net"), 2, "it must be py:FILE_OR_MODULE:FACTORY"),
        "model form": (change(model="py:build"), 2, "it must be py:FILE_OR_MODULE:FACTORY"),
        "syntax error": (with_file("m.py", b"def", checkpoint=None, model="py:m.py:build"), 2, "--checkpoint"),
        "no checkpoint": (change(checkpoint="nowhere.safetensors"), 2, "nowhere.safetensors does not exist"),
        "checkpoint kind": (with_file("net.h5", b"HDF", checkpoint=...), 2, "give a .safetensors, .pt, .pth,"),
        "checkpoint damaged": (
            with_file("c.safetensors", b"\x10" * 50, checkpoint=...),
            5,
            "c.safetensors is not a readable",
        ),
        "pt damaged": (
            lambda w, t: (
                (t / "c.pt").write_bytes((w / "net.pt").read_bytes()[:900])
                and arguments(w, t / "out.pt", checkpoint=t / "c.pt")
            ),
            5,
            "c.pt cannot be read",
        ),
        "checkpoint keys": (
            with_checkpoint(lambda s: {f"net{k}": v for k, v in s.items()}),
            5,
            "4 missing (0.weight, 0.bias, 4.weight, …)",
        ),
        "checkpoint shapes": (
            with_checkpoint(lambda s: s | {"4.weight": torch.zeros(5, 32)}),
            5,
            "4.weight [5, 32] instead of [3, 32]",
        ),
        "checkpoint nan": (with_checkpoint(nan), 5, "'4.weight' of the model contains NaN"),
        "no state dict": (with_checkpoint(lambda s: {"epoch": 3}, "c.pt"), 5, "holds no state dict (it holds epoch)"),
        "pickle": (with_checkpoint(lambda s: {"net": _Evil()}, "c.pt"), 5, "weights_only=True"),
        "format": (lambda w, t: arguments(w, t / "out.pt"), 2, "differ in format"),
        "no folder": (lambda w, t: arguments(w, t / "nowhere" / "o.safetensors"), 2, "does not exist; create it first"),
        "alpha": (change(alpha="0"), 2, "alpha is 0"),
        "alpha word": (change(alpha="strong"), 2, "alpha"),
        "recipe": (change(recipe="magic"), 2, "recipe is 'magic'"),
        "pattern": (change(include="head.*"), 2, "'head.*' matches no layer"),
        "verified from": (change(verified_from="space"), 2, "--verified-from"),
        "verified from missing": (change(verified_from=None), 2, "--verified needs --verified-from, one of unseen"),
        "nothing to correct from": (change(verified=None), 2, "correct needs --verified, or --trusted if"),
        "verified and trusted": (change(trusted="t.npz"), 2, "correct needs --verified, or --trusted if"),
        "trusted as verified": (
            change(verified=None, trusted="t.npz"),
            2,
            "--verified-from unseen contradicts --trust",
        ),
        "trust alone": (change(trust="low-loss"), 2, "say how to pick from --trusted, which is not given"),
        "trusted count alone": (change(trusted_count="90"), 2, "say how to pick from --trusted, which is not given"),
        "trust method": (
            change(verified=None, verified_from=None, trusted="t.npz", trust="magic"),
            2,
            "--trust",
        ),
        "trusted count": (
            lambda w, t: arguments(
                w,
                t / "o.safetensors",
                verified=None,
                verified_from=None,
                trusted=w / "verified.npz",
                trusted_count="49",
            ),
            2,
            "--trusted-count is 49; with this alpha and these folds it must be 50 or more",
        ),
        "trusted classes": (
            lambda w, t: arguments(
                w,
                t / "o.safetensors",
                verified=None,
                verified_from=None,
                trusted=w / "verified.npz",
                trusted_count=2,
                alpha=9,
            ),
            2,
            "count is 2, but the data has 3 classes",
        ),
        "no trusted data": (
            change(verified=None, verified_from=None, trusted="nowhere.npz"),
            2,
            "nowhere.npz does not exist",
        ),
        "mean": (change(mean="a,b"), 2, "mean is 'a,b'"),
        "mean without std": (change(mean="0.5"), 2, "mean has 1 numbers and std 3"),
        "size": (change(size="0"), 2, "size is 0"),
        "unknown flag": (lambda w, t: [*arguments(w, t / "o.safetensors"), "--fix"], 2, "--fix"),
        "moments": (change(moments="nowhere.safetensors"), 2, "nowhere.safetensors does not exist"),
        "test labels": (
            lambda w, t: (
                write_parquet(t / "t.parquet", x, y + 5)
                or arguments(w, t / "o.safetensors", alpha=9, test=t / "t.parquet")
            ),
            5,
            "has label 5",
        ),
        "device": (change(device="warp"), 2, "device 'warp' is not available"),
    }


def test_flags_are_whole_words_with_dashes_or_underscores_and_may_be_negative(world, tmp_path, capsys):
    argv = arguments(world, tmp_path / "a.safetensors", alpha=9)
    negative = [
        "--mean",
        "-0.5,-0.5,-0.5",
        "--no-check-labels",
        "--no-check-inputs",
    ]  # of which the network makes little
    assert run([*argv, "--folds", "4", "--verified_from", "unseen", *negative], capsys)[0] == 0
    code, _, err = run([*argv, "--fold", "4"], capsys)
    assert code == 2
    assert "--fold" in err
    assert "see verifix correct --help" in err
    code, _, err = run([*argv, "--alpha", "strong"], capsys)
    assert err == "verifix: error: --alpha cannot be strong; see verifix correct --help\n"


class _Evil:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


@pytest.mark.parametrize("name", bad_commands())
def test_bad_input_gets_one_line_and_writes_nothing(name, world, tmp_path, capsys, monkeypatch):
    make, code, text = bad_commands()[name]
    monkeypatch.chdir(tmp_path)
    argv = make(world, tmp_path)
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    found, out, err = run([*argv, "--no-progress"], capsys)
    assert found == code, err
    assert out == ""
    assert err.startswith("verifix: error: ")
    assert err.count("\n") == 1
    assert text in err
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_exists_needs_force_and_the_input_is_never_overwritten(world, tmp_path, capsys):
    out = tmp_path / "fixed.safetensors"
    out.write_text("precious")
    code, _, err = run(arguments(world, out, alpha=9), capsys)
    assert code == 2
    assert "exists already; choose another name, or pass --force" in err
    assert out.read_text() == "precious"
    out.chmod(0o640)
    assert run([*arguments(world, out, alpha=9), "--force"], capsys)[0] == 0
    assert out.stat().st_mode & 0o777 == 0o640
    code, _, err = run([*arguments(world, world / "net.safetensors", alpha=9), "--force"], capsys)
    assert code == 2
    assert "is an input; it is never overwritten" in err
    beside = tmp_path / "other.correction.safetensors"
    beside.write_text("precious")
    assert run(arguments(world, tmp_path / "other.safetensors", alpha=9), capsys)[0] == 2
    assert beside.read_text() == "precious"
    assert not (tmp_path / "other.safetensors").exists()


def test_a_folder_of_named_classes_needs_the_order_of_the_outputs(world, tmp_path, capsys):
    argv = arguments(world, tmp_path / "a.safetensors", verified=world / "verified-named", alpha=9)
    for further, told in (([], "in another order than the model's outputs"), (["--no-check-labels"], "give --classes")):
        code, _, err = run([*argv, *further], capsys)
        assert code == 5
        assert told in err
    assert run([*argv, "--classes", "zebra,ant,cow"], capsys)[0] == 0
    named = open_data(world / "verified-named", DataOptions(classes="zebra,ant,cow")).dataset
    numbered = open_data(world / "verified", DataOptions()).dataset
    assert sorted(named.labels) == sorted(numbered.labels)
    by_name = {Path(named.place(i)).name: label for i, label in enumerate(named.labels)}
    assert all(by_name[Path(numbered.place(i)).name] == label for i, label in enumerate(numbered.labels))
    with pytest.raises(verifix.DataError, match=r"is not among the model.s classes"):
        open_data(world / "verified-named", DataOptions(classes=["ant", "cow"]))


def test_images_become_inputs_as_told(world, tmp_path):
    pixels, labels = images(3, 7)
    write_parquet(tmp_path / "a.parquet", pixels, labels, "given")
    options = DataOptions(mean="0.5,0.4,0.3", std="0.2,0.3,0.4", label_column="given")
    x, y = open_data(tmp_path / "a.parquet", options).dataset[1]
    expected = (pixels[1] / 255 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    np.testing.assert_allclose(x.numpy(), expected.transpose(2, 0, 1), rtol=1e-5)
    assert y == 1
    resized, _ = open_data(tmp_path / "a.parquet", DataOptions(size=6, label_column="given")).dataset[0]
    assert resized.shape == (3, 6, 6)
    grey, _ = open_data(tmp_path / "a.parquet", DataOptions(mean="0.5", std="0.5", label_column="given")).dataset[0]
    assert grey.shape == (1, 10, 10)
    np.savez(tmp_path / "a.npz", images=pixels, labels=labels)
    from_npz, _ = open_data(tmp_path / "a.npz", DataOptions(mean="0.5,0.4,0.3", std="0.2,0.3,0.4")).dataset[1]
    torch.testing.assert_close(from_npz, x)


def test_tied_entries_of_a_checkpoint_stay_tied(tmp_path):
    weight = torch.randn(4, 4)
    torch.save({"a": weight, "b": weight}, tmp_path / "t.pt")
    write_with(read_checkpoint(tmp_path / "t.pt"), tmp_path / "u.pt", {"a": torch.ones(4, 4)})
    content = torch.load(tmp_path / "u.pt", weights_only=True)
    assert content["a"].data_ptr() == content["b"].data_ptr()
    assert content["b"].sum() == 16


def test_a_pickle_is_never_run_also_if_the_environment_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save({"net": _Evil()}, "evil.pt")
    with pytest.raises(verifix.CheckpointError):
        read_checkpoint("evil.pt")
    assert not Path("executed").exists()


def test_a_failed_write_leaves_the_old_file_and_no_leftovers(tmp_path):
    from verifix.storage.atomic import write_atomically

    target = tmp_path / "file"
    target.write_text("old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(verifix.VerifixError, match=r"file could not be written \(OSError: disk full\)"):
        write_atomically(target, fail, force=True)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_inspect_reports_the_share_and_warns_below_nine_tenths(tmp_path, capsys):
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 2))\n"
        "def plain():\n"
        "    return nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(8, 2))\n"
    )
    words = ["inspect", "--model", f"py:{tmp_path}/net.py:build", "--input-shape", "8"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "Of 80 multiplied weights: 20.00% corrected, 80.00% skipped." in out
    assert "Warning: only 20.0% of the multiplied weights would be corrected; see above why" in out
    assert "SpectralNorm computes the weight from it" in out
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["corrected_share"] == 0.2
    assert result["warning"].startswith("only 20.0%")


def test_class_names_must_be_as_many_as_the_outputs(world, tmp_path, capsys):
    for classes in ("a,b", "a,b,c,d"):
        argv = [*arguments(world, tmp_path / "f.safetensors", verified=world / "verified.npz"), "--classes", classes]
        code, _, err = run(argv, capsys)
        assert code == 5
        assert f"{classes.count(',') + 1} class names" in err
        assert "the model has 3 outputs; give --classes with one name for each" in err
    assert not list(tmp_path.iterdir())


def test_a_verified_set_of_one_class_is_refused_and_absent_classes_are_named(world, tmp_path, capsys):
    pixels, labels = images(90, 5)
    for wanted in ([1], [0, 2]):
        chosen = np.isin(labels, wanted).nonzero()[0]
        np.savez(tmp_path / "v.npz", x=np.repeat(pixels[chosen], 3, 0), y=np.repeat(labels[chosen], 3))
        code, out, err = run(arguments(world, tmp_path / "f.safetensors", verified=tmp_path / "v.npz"), capsys)
        if len(wanted) == 1:
            assert code == 5
            assert "all 90 verified samples have the label 1" in err
        else:
            assert code in (0, 3)
            assert "No verified sample has the label 1: the correction may forget such classes" in out


def test_a_negated_switch_in_a_file_is_refused(world, tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("no_padding: false\n")
    code, _, err = run([*arguments(world, tmp_path / "f.safetensors"), "--config", tmp_path / "c.yaml"], capsys)
    assert code == 2
    assert "c.yaml has no_padding; in a file a switch is turned off as padding: false" in err


def test_nothing_is_written_into_a_folder_that_is_read(world, tmp_path, capsys):
    for flag, path in (("--out", "x.safetensors"), ("--save-moments", "m.safetensors")):
        argv = arguments(world, tmp_path / "f.safetensors", verified=world / "verified", save_moments=None)
        argv = [*argv, flag, str(world / "verified" / path)]
        code, _, err = run(argv, capsys)
        assert code == 2
        assert "is inside an input folder" in err


def test_a_process_that_is_asked_to_end_leaves_nothing_half_written(world, tmp_path):
    code = (
        "import os, signal, sys, threading\nfrom verifix.storage import tensors\nfrom verifix.cli.main import main\n"
        "fill = tensors.fill_safetensors\n"
        "def slow(*a, **k):\n    fill(*a, **k)\n    os.kill(os.getpid(), signal.SIGTERM)\n"
        "tensors.fill_safetensors = slow\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    argv = arguments(world, tmp_path / "f.safetensors", alpha=30)
    result = subprocess.run(
        [sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=120, check=False
    )
    assert (result.returncode, result.stderr.splitlines()[-1]) == (143, "verifix: error: terminated")
    assert not list(tmp_path.iterdir())
