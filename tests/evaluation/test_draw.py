"""How the samples were drawn: asked for, told, and refused where the gain on them is not that on the data."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

import verifix
from tests.cases import small_data, small_net
from verifix import UsageError
from verifix.cli.main import main

NET = "from tests.cases import small_net\n\n\ndef build():\n    return small_net()\n"
MENDS = {
    "by-class": "class_weights(labels, shares)",
    "suspects": "the inverse of its probability to be drawn",
    "mixed": "0 for the others",
}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Weights, a model file, 100 samples and weights for them."""
    monkeypatch.chdir(tmp_path)
    torch.save(small_net().state_dict(), "net.pt")
    (tmp_path / "net.py").write_text(NET)
    x, y = small_data(100)
    np.savez("v.npz", x=x.numpy(), y=y.numpy())
    np.save("w.npy", np.where(np.arange(100) < 50, 3.0, 1.0))
    (tmp_path / "shares.txt").write_text("\n".join(f"{c}={share}" for c, share in enumerate((0.5, 0.3, 0.2))))
    return tmp_path


def correct(capsys, *more: str) -> tuple[int, str, str]:
    given = "correct --model py:net.py:build --checkpoint net.pt --verified v.npz --out o.pt --alpha 100 --no-progress"
    code = main([*given.split(), "--no-check-labels", *more])
    return code, *capsys.readouterr()


@pytest.mark.parametrize("drawn", MENDS)
def test_a_proof_on_samples_that_are_no_random_sample_is_refused(drawn):
    with pytest.raises(UsageError, match="drawn is '") as caught:
        verifix.prove(small_net(), small_data(100), alpha=100.0, drawn=drawn, progress=False, verified_from="unseen")
    assert MENDS[drawn] in str(caught.value)
    assert "--test" in str(caught.value)


@pytest.mark.parametrize(
    ("drawn", "weights", "words"),
    [
        (None, False, "Nobody said how the samples were drawn"),
        ("random", False, None),
        ("by-class", True, "Each sample counts with the weight"),
        ("suspects", True, "whatever could not have been drawn is not represented"),
        ("mixed", True, "the others were selected, and only train"),
        ("random", True, "Each sample counts with the weight"),
    ],
    ids=str,
)
def test_a_proof_says_what_it_assumes_of_the_draw(drawn, weights, words):
    given = {"weights": np.linspace(1, 2, 100)} if weights else {}
    proof = verifix.prove(
        small_net(),
        small_data(100),
        alpha=100.0,
        drawn=drawn,
        progress=False,
        check_labels=False,
        **given,
        verified_from="unseen",
    )
    assert proof.drawn == drawn
    assert proof.note.endswith("correction that is made from all.") if words is None else words in proof.note
    assert proof.note in proof.summary()


@pytest.mark.parametrize(
    ("drawn", "words"),
    [("by-class", "were drawn by class"), ("suspects", "gains larger, than"), ("mixed", "beside selected ones")],
)
def test_a_correction_says_what_the_scores_of_its_samples_are_not(drawn, words):
    fixed = verifix.correct(small_net(), small_data(60), alpha=100.0, drawn=drawn, progress=False, check_labels=False)
    assert any(words in note for note in fixed.notes)
    assert words in fixed.summary()
    assert fixed.provenance["drawn"] == drawn


def test_a_random_draw_leaves_no_remark():
    for drawn in (None, "random"):
        fixed = verifix.correct(small_net(), small_data(60), alpha=100.0, drawn=drawn, progress=False)
        assert not any("drawn" in note for note in fixed.notes)


def test_no_other_word_is_taken():
    with pytest.raises(UsageError, match="drawn is 'randomly'; it must be one of 'random', 'by-class', 'suspects'"):
        verifix.correct(small_net(), small_data(60), drawn="randomly", progress=False)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--proof nested needs --drawn, one of random, by-class, suspects"),
        (["--proof", "split"], "--proof split needs --drawn"),
        (["--drawn", "by-class"], "--class-shares"),
        (["--drawn", "suspects"], "--weights-file"),
        (["--drawn", "suspects", "--class-shares", "shares.txt"], "--weights-file"),
        (["--drawn", "suspects", "--proof", "split"], "--weights-file"),
        (["--drawn", "mixed"], "--weights-file"),
        (["--drawn", "haphazard"], "--drawn"),
    ],
    ids=" ".join,
)
def test_the_command_asks_before_any_work(here, capsys, more, words):
    code, out, err = correct(capsys, "--verified-from", "unseen", *more)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
    assert not (here / "o.pt").exists()


def test_picked_samples_have_no_draw(here, capsys):
    given = "correct --model py:net.py:build --checkpoint net.pt --trusted v.npz --out o.pt --proof none"
    assert main([*given.split(), "--drawn", "random"]) == 2
    assert "nobody verified those of --trusted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "more",
    [
        ["--drawn", "by-class", "--class-shares", "shares.txt"],
        ["--drawn", "by-class", "--weights-file", "w.npy"],
        ["--drawn", "suspects", "--weights-file", "w.npy"],
        ["--drawn", "by-class", "--class-shares", "shares.txt", "--proof", "split"],
        ["--drawn", "suspects", "--test", "v.npz", "--proof", "none"],
        ["--proof", "none"],
        ["--drawn", "suspects", "--proof", "none"],
    ],
    ids=" ".join,
)
def test_the_command_goes_on_where_the_gain_has_a_meaning_or_none_is_measured(here, capsys, more):
    if "--test" in more:
        x, y = small_data(140)
        np.savez("v.npz", x=x.numpy()[100:], y=y.numpy()[100:])
        more = [word for word in more if word not in ("--proof", "none")]
        np.savez("t.npz", x=x.numpy()[:100], y=y.numpy()[:100])
        more = ["t.npz" if word == "v.npz" else word for word in more]
    code, out, err = correct(capsys, "--verified-from", "unseen", "--json", *more)
    assert code in (0, 3), err
    result = json.loads(out)
    drawn = more[more.index("--drawn") + 1] if "--drawn" in more else None
    assert result["provenance"]["drawn"] == drawn
    if "--weights-file" in more or "--class-shares" in more:
        assert result["proof"]["comparison"]["weighted"]
        assert "weight" in result["proof"]["note"]
    if drawn is not None:
        assert any(f"were drawn {'by class' if drawn == 'by-class' else 'because'}" in note for note in result["notes"])


def test_of_a_mixed_set_only_the_random_samples_are_judged():
    (x, y), net = small_data(100), small_net()
    weights = np.where(np.arange(100) % 3 == 0, 7.0, 0.0)
    settings = {"alpha": 100.0, "progress": False, "check_labels": False}
    proof = verifix.prove(net, (x, y), drawn="mixed", weights=weights, **settings, verified_from="unseen")
    plain = verifix.prove(net, (x, y), **settings, verified_from="unseen")
    random = np.flatnonzero(weights)
    assert proof.indices == tuple(random)
    assert torch.equal(proof.after, plain.after[random])  # the others have trained all the same
    want = verifix.compare(plain.before[random], plain.after[random], y[random], outputs="logits")
    assert proof.comparison == want
    assert not proof.comparison.weighted
    assert sum(fold.samples for fold in proof.folds) == 34
    with pytest.raises(verifix.DataError, match="1 of the 100 verified samples were drawn at random"):
        verifix.prove(net, (x, y), drawn="mixed", weights=np.eye(100)[0], **settings, verified_from="unseen")
    with pytest.raises(verifix.DataError, match="there are 99 weights for 100 samples"):
        verifix.prove(net, (x, y), drawn="mixed", weights=weights[1:], **settings, verified_from="unseen")


def test_weighted_suspects_give_the_gain_on_the_data():
    """Of 20,000 answers, suspects are drawn nine times as often: weights of one over that tell the true gain."""
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 20000)
    suspect = draw.random(20000) < 0.3
    before = np.where(suspect & (draw.random(20000) < 0.7), (labels + 1) % 4, labels)
    after = np.where(draw.random(20000) < 0.5, labels, before)
    truth = 100 * float((after == labels).mean() - (before == labels).mean())
    chance = np.where(suspect, 0.45, 0.05)
    held, told = [], []
    for _ in range(40):
        drawn = draw.random(20000) < chance
        one = verifix.compare(before[drawn], after[drawn], labels[drawn], weights=1 / chance[drawn])
        plain = verifix.compare(before[drawn], after[drawn], labels[drawn])
        held.append(one.gain.low <= truth <= one.gain.high)
        told.append((one.gain.estimate, plain.gain.estimate))
    weighted, unweighted = np.mean(told, axis=0)
    assert weighted == pytest.approx(truth, abs=0.5)
    assert unweighted > truth + 10
    assert sum(held) >= 33  # of 40 with a level of 95%, fewer have a chance below 1 in 1,000
