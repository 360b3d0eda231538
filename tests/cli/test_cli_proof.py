"""`verifix correct` proves its gain, writes only what is proved, and shows all of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import verifix
from verifix.cli.demo import digits
from verifix.cli.main import main
from verifix.model.samples import read_samples
from verifix.proof import halves
from verifix.report import schema

NET = """
from verifix.cli.demo.training import mlp

def build():
    return mlp((64, 256, 256, 10), 0, norm=True)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A network that has memorised wrong labels, and digits that it has not seen."""
    root = tmp_path_factory.mktemp("world")
    data = digits.load(0)
    (root / "net.py").write_text(NET)
    save_file(digits.trained(data, 0).state_dict(), root / "net.safetensors")
    for name, indices in (("verified", data.verified), ("unseen", data.unseen), ("few", data.verified[:60])):
        np.savez(root / f"{name}.npz", x=data.inputs[indices].numpy(), y=data.labels[indices].numpy())
    shuffled = data.labels[data.verified][torch.randperm(200, generator=torch.Generator().manual_seed(3))]
    np.savez(root / "shuffled.npz", x=data.inputs[data.verified].numpy(), y=shuffled.numpy())
    return root


def run(world: Path, out: Path, capsys, *more: str, verified: str = "verified") -> tuple[int, str, str]:
    given = ["--model", f"py:{world / 'net.py'}:build", "--checkpoint", str(world / "net.safetensors")]
    given += ["--no-progress", "--out", str(out / "fixed.safetensors")]
    samples = str(world / f"{verified}.npz")
    if "--trusted" in more:
        given += ["--trusted", samples]
        more = tuple(word for word in more if word != "--trusted")
    else:
        given += ["--verified", samples]
        given += [] if "--verified-from" in more else ["--verified-from", "unseen"]
        unsaid = "--drawn" in more or "none" in more or "--test" in more
        given += [] if unsaid else ["--drawn", "random"]
    code = main(["correct", *given, *more])
    return code, *capsys.readouterr()


def test_a_nested_proof_is_that_of_the_call_and_lets_the_correction_through(world, tmp_path, capsys):
    wanted = {name: tmp_path / f"r.{name}" for name in ("html", "json", "md")}
    flags = ["--report", wanted["html"], "--result", wanted["json"], "--card", wanted["md"], "--recipe", "verifix"]
    code, text, err = run(world, tmp_path, capsys, *map(str, flags), "--json")
    assert code == 0, err
    result = json.loads(text)
    data = digits.load(0)
    verified = data.inputs[data.verified], data.labels[data.verified]
    model = digits.trained(data, 0)
    proof = verifix.prove(model, verified, recipe="verifix", progress=False, verified_from="unseen")
    assert result["verdict"] == proof.verdict == "improved"
    assert result["proof"]["comparison"] == json.loads(json.dumps(proof.comparison.as_dict()))
    assert [fold["strengths"] for fold in result["proof"]["folds"]] == [dict(fold.strengths) for fold in proof.folds]
    assert "Nested cross-fitting" in result["proof"]["note"]
    assert json.loads(wanted["json"].read_text()) == result
    jsonschema.validate(result, schema())
    outcomes = {(e["outcome"], e["index"]) for e in result["examples"]}
    right = [logits.argmax(1) == proof.labels for logits in (proof.before, proof.after)]
    assert {i for what, i in outcomes if what == "broken"} == set((right[0] & ~right[1]).nonzero().flatten().tolist())
    assert {i for what, i in outcomes if what == "fixed"} <= set((~right[0] & right[1]).nonzero().flatten().tolist())
    assert result["files"]["checkpoint"]["sha256"] == verifix.storage.atomic.file_digest(world / "net.safetensors")
    eigenvalues = result["spectra"]["0.weight"]["eigenvalues"]
    _, singular, _ = torch.linalg.svd(verified[0].double())
    expected = singular.square() / singular.square().sum()
    np.testing.assert_allclose(eigenvalues, expected.numpy(), atol=1e-12)
    page = wanted["html"].read_text(encoding="utf-8")
    assert "Improved" in page
    assert "<script" not in page
    assert "improved" in wanted["md"].read_text(encoding="utf-8").lower()


def test_a_proof_on_test_samples_or_on_one_half_decides_as_well(world, tmp_path, capsys):
    for more, kind, count in (
        (["--test", str(world / "unseen.npz")], "test", 597),
        (["--proof", "split"], "split", 100),
    ):
        code, text, _ = run(world, tmp_path, capsys, *more, "--alpha", "1000", "--force", "--json")
        result = json.loads(text)
        assert code == 0
        assert (result["proof"]["kind"], result["proof"]["samples"]) == (kind, count)
        assert result["verdict"] == result["proof"]["comparison"]["verdict"]
        assert "test" in result or kind == "split"


def test_what_is_not_proved_is_not_written_unless_forced(world, tmp_path, capsys):
    (tmp_path / "m").mkdir()
    moments = ["--save-moments", str(tmp_path / "m" / "m.safetensors")]
    code, text, _ = run(world, tmp_path, capsys, "--alpha", "3", *moments)
    assert code == 3
    assert "Not proven" in text or "Harmful" in text
    assert "The gain is not proven, so no checkpoint was written" in text
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    code, text, _ = run(world, tmp_path, capsys, "--alpha", "3", "--force")
    assert code == 0
    assert (tmp_path / "fixed.safetensors").is_file()


def test_without_a_proof_the_choice_is_written_and_no_verdict_is_claimed(world, tmp_path, capsys):
    code, text, _ = run(world, tmp_path, capsys, "--alpha", "1000", "--proof", "none", "--json")
    result = json.loads(text)
    assert code == 0
    assert result["verdict"] is None
    assert result["proof"]["comparison"] is None
    jsonschema.validate(result, schema())


def test_no_change_needs_no_proof(world, tmp_path, capsys):
    code, text, _ = run(
        world,
        tmp_path,
        capsys,
        *("--recipe", "verifix", "--no-check-labels", "--no-check-inputs", "--json"),
        verified="shuffled",
    )
    assert code == 3
    assert json.loads(text)["proof"]["kind"] == "none"
    assert list(tmp_path.iterdir()) == []


def test_class_shares_weigh_the_proof(world, tmp_path, capsys):
    shares = ["--class-shares", ",".join(["0.55", *["0.05"] * 9]), "--alpha", "1000", "--json", "--force"]
    _, text, _ = run(world, tmp_path, capsys, *shares, "--test", str(world / "unseen.npz"))
    result = json.loads(text)
    comparison = result["proof"]["comparison"]
    assert comparison["weighted"] is True
    weighted = [0.55, *[0.05] * 9]
    expected = sum(w * row["after"] for w, row in zip(weighted, comparison["per_class"], strict=True))
    assert comparison["after"]["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("more", "verified", "code", "words"),
    [
        (["--verified-from", "training"], "verified", 2, "prove nothing: give others with --test, or --proof none"),
        (["--verified-from", "trusted", "--proof", "split"], "verified", 2, "prove nothing"),
        (["--proof", "nested", "--test", "unseen.npz"], "verified", 2, "--test proves the gain already"),
        ([], "few", 5, "60 verified samples, but a nested proof needs at least 63"),
        (["--proof", "maybe"], "verified", 2, "--proof"),
        (["--class-shares", "0.5,0.5"], "verified", 5, "class 2 has"),
        (["--class-shares", "0.5,0.5", "--proof", "none"], "verified", 2, "--proof none measures no gain"),
        (["--weights-file", "w.npy", "--proof", "none"], "verified", 2, "--proof none measures no gain"),
    ],
)
def test_what_cannot_prove_anything_is_refused_in_one_line(world, tmp_path, capsys, more, verified, code, words):
    found, text, err = run(world, tmp_path, capsys, *more, verified=verified)
    assert (found, text) == (code, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_weights_stay_with_their_samples_when_copies_are_left_out_of_the_test(world, tmp_path, capsys):
    parts = {}
    with np.load(world / "unseen.npz") as unseen, np.load(world / "verified.npz") as verified:
        for name in ("x", "y"):
            parts[name] = np.concatenate([verified[name][:40], unseen[name]])
    np.savez(tmp_path / "leaky.npz", **parts)
    weights = np.random.default_rng(0).uniform(0.1, 9, 40 + 597)
    np.save(tmp_path / "all.npy", weights)
    np.save(tmp_path / "clean.npy", weights[40:])
    found = []
    for test, file in ((tmp_path / "leaky.npz", "all.npy"), (world / "unseen.npz", "clean.npy")):
        more = ["--test", str(test), "--weights-file", str(tmp_path / file), "--alpha", "1000", "--json", "--force"]
        code, text, err = run(world, tmp_path, capsys, *more)
        assert code == 0, err
        found.append(json.loads(text)["proof"]["comparison"])
    assert found[0] == found[1]
    assert found[0]["weighted"] is True


@pytest.mark.parametrize("more", [["--test", "unseen.npz"], ["--proof", "split"], []])
def test_another_number_of_weights_than_samples_is_refused(world, tmp_path, capsys, monkeypatch, more):
    monkeypatch.chdir(world)
    np.save(tmp_path / "w.npy", np.ones(700))
    code, text, err = run(world, tmp_path, capsys, *more, "--weights-file", str(tmp_path / "w.npy"), "--alpha", "1000")
    assert (code, text) == (5, "")
    assert f"w.npy: weights have the shape [700] for {597 if '--test' in more else 200} samples" in err
    assert not (tmp_path / "fixed.safetensors").exists()


@pytest.fixture
def leaky(world, tmp_path):
    """Test samples of which the first 40 are verified, and class 0 is among those alone."""
    with np.load(world / "unseen.npz") as unseen, np.load(world / "verified.npz") as verified:
        first = np.argsort(verified["y"], kind="stable")[:40]
        others = unseen["y"] != 0
        x, y = (np.concatenate([verified[name][first], unseen[name][others]]) for name in ("x", "y"))
    np.savez(tmp_path / "leaky.npz", x=x, y=y)
    return tmp_path / "leaky.npz", y


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda w: w[:, None], "weights have the shape [{n}, 1] for {n} samples"),
        (lambda w: w.sum(), "weights have the shape [] for {n} samples"),
        (lambda w: np.where(np.arange(len(w)) == 50, -1.0, w), "the weight of sample 50 is -1.0"),
        (lambda w: np.where(np.arange(len(w)) == 5, np.nan, w), "the weight of sample 5 is nan"),
        (lambda w: np.where(np.arange(len(w)) < 40, w, 0.0), "only samples on which the gain is not measured"),
        (lambda w: w.astype(str), "holds text; it must hold one number per sample"),
    ],
)
def test_weights_are_checked_as_they_stand_in_the_file_before_the_correction(
    world, leaky, tmp_path, capsys, monkeypatch, change, words
):
    monkeypatch.setattr("verifix.cli.commands.correct.correct", lambda *_, **__: pytest.fail("corrected"))
    path, y = leaky
    np.save(tmp_path / "w.npy", change(np.ones(len(y)) + np.arange(len(y)) % 2))
    code, text, err = run(world, tmp_path, capsys, "--test", str(path), "--weights-file", str(tmp_path / "w.npy"))
    assert (code, text) == (5, "")
    assert words.format(n=len(y)) in err.splitlines()[-1]


def test_a_class_of_which_no_sample_is_left_to_measure_is_named(world, leaky, tmp_path, capsys):
    path, y = leaky
    more = ["--test", str(path), "--alpha", "1000", "--class-shares", ",".join(["0.1"] * 10)]
    code, text, err = run(world, tmp_path, capsys, *more)
    kept = len(y) - 40
    assert (code, text) == (5, "")
    assert f"class 0 has the share 0.1, but none of its samples is among the {kept} of {len(y)} on which" in err


def test_shares_and_examples_count_what_is_left_of_the_test(world, leaky, tmp_path, capsys):
    path, y = leaky
    shares = [0.0, 0.2, *[0.1] * 8]
    more = ["--class-shares", ",".join(map(str, shares)), "--result", str(tmp_path / "r.json")]
    code, text, err = run(world, tmp_path, capsys, "--test", str(path), *more, "--alpha", "1000", "--json", "--force")
    assert code == 0, err
    result = json.loads(text)
    rows = result["proof"]["comparison"]["per_class"]
    expected = sum(share * row["after"] for share, row in zip(shares, rows, strict=True) if share)
    assert result["proof"]["comparison"]["after"]["accuracy"] == pytest.approx(expected)
    assert result["proof"]["samples"] == len(y) - 40
    assert result["examples"]
    assert all(y[example["index"]] == example["label"] and example["index"] >= 40 for example in result["examples"])


def test_shares_are_those_of_the_half_that_proves(world, tmp_path, capsys):
    shares = [0.55, *[0.05] * 9]
    more = ["--proof", "split", "--class-shares", ",".join(map(str, shares)), "--alpha", "1000", "--json", "--force"]
    code, text, err = run(world, tmp_path, capsys, *more)
    assert code == 0, err
    comparison = json.loads(text)["proof"]["comparison"]
    expected = sum(share * row["after"] for share, row in zip(shares, comparison["per_class"], strict=True))
    assert comparison["after"]["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("choice", [["--limit", "100"], ["--trusted", "--trusted-count", "100"]])
def test_weights_of_test_samples_go_with_a_choice_of_the_others(world, tmp_path, capsys, choice):
    np.save(tmp_path / "w.npy", np.arange(1.0, 598.0))
    more = ["--test", str(world / "unseen.npz"), "--weights-file", str(tmp_path / "w.npy"), "--alpha", "1000"]
    code, text, err = run(world, tmp_path, capsys, *more, *choice, "--json", "--force")
    assert code == 0, err
    comparison = json.loads(text)["proof"]["comparison"]
    assert (comparison["weighted"], comparison["samples"]) == (True, 597)


def test_the_half_that_corrects_has_enough_samples_whenever_all_are_enough(world):
    with np.load(world / "verified.npz") as verified:
        x, y = verified["x"], verified["y"]
    for seed in range(30):
        some = np.random.default_rng(seed).choice(len(y), 101, replace=False)
        correcting, proving = halves(read_samples((torch.from_numpy(x[some]), torch.from_numpy(y[some]))), seed)
        assert sorted([*correcting, *proving]) == list(range(101))
        assert len(correcting) >= 51


def test_one_bar_tells_of_correction_and_proof_and_the_estimate_comes_before_the_proof(world, tmp_path, capsys):
    given = ["--model", f"py:{world / 'net.py'}:build", "--checkpoint", str(world / "net.safetensors"), "--drawn"]
    given += ["random", "--verified", str(world / "verified.npz"), "--verified-from", "unseen", "--recipe", "verifix"]
    assert main(["correct", *given, "--out", str(tmp_path / "fixed.safetensors")]) == 0
    out, err = capsys.readouterr()
    assert set(re.findall(r"\r([^\r\n:|]+): +\d+%\|", err)) == {"correct"}
    assert (
        err.index("correction: 1 path of stages in 5 folds")
        < re.search(r"proof: 5 corrections, each judged .*, about \d+ s", err).start()
    )
    assert re.search(r"about \d+ s left, proof \d/2", err)
    assert "%|" not in out
