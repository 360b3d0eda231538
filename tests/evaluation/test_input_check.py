"""Samples that are not prepared as in training: told or stopped before anything is corrected."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import comb
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import verifix
from benchmarks import preprocessing as grid
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import DataError, UsageError
from verifix.cli.main import main
from verifix.evaluation.accuracy import (
    DOUBT,
    Accuracy,
    accuracy_of,
    by_chance,
    chance_of,
    remark_on_chance,
    remark_on_expected,
)
from verifix.options import CorrectOptions

# The two rules, against slow sums


def binomial(n: int, p: float) -> list[float]:
    return [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]


@pytest.mark.parametrize(("right", "samples"), [(0, 20), (3, 50), (17, 200), (199, 200)])
def test_the_bound_is_the_accuracy_at_which_so_few_right_answers_have_a_probability_of_5_percent(right, samples):
    bound = Accuracy(right, samples).bound
    assert sum(binomial(samples, bound)[: right + 1]) == pytest.approx(0.05, rel=1e-6)


def test_all_right_is_bounded_by_100_percent():
    assert Accuracy(30, 30).bound == 1


@pytest.mark.parametrize(
    ("classes", "counts", "chance"),
    [
        (10, [10] * 10, 0.2),
        (1000, [1] * 100, 0.01),
        (4, [25] * 4, 0.5),
        (3, [10] * 3, 0.55),
        (2, [10, 10], 0.55),
        (2, [80, 20], 0.8),
        (10, [70, 30], 0.7),
        (10, [50], 0.2),  # one class alone is no majority
    ],
    ids=str,
)
def test_chance_is_twice_its_share_or_the_majority(classes, counts, chance):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    assert by_chance(labels, classes) == pytest.approx(chance)


def test_near_chance_begins_where_the_bound_reaches_it():
    labels = torch.arange(200) % 10
    told = []
    for right in range(60):
        predicted = torch.where(torch.arange(200) < right, labels, (labels + 1) % 10)
        text = remark_on_chance(predicted, labels, 10)
        below = sum(binomial(200, 0.2)[: right + 1]) < 0.05  # so few are improbable at 20%
        assert bool(text) == below, right
        told += [right] * bool(text)
    assert told == list(range(31))
    assert remark_on_chance((labels + 1) % 10, labels, 10, "test") == (
        "The model is right on 0 of the 200 test samples (0.0%), which is near chance: the upper 95% bound, 1.5%, is "
        "below 20.0%."
    )


@pytest.mark.parametrize(
    ("right", "samples", "share"), [(138, 1000, 0.58), (150, 200, 0.769), (7, 9, 0.5), (40, 40, 1.0)]
)
def test_the_chance_of_another_accuracy_is_that_of_all_counts_that_are_no_more_probable(right, samples, share):
    masses = binomial(samples, share)
    slow = sum(mass for mass in masses if mass <= masses[right] * (1 + 1e-7))
    assert chance_of(Accuracy(right, samples), share) == pytest.approx(slow, abs=1e-12)


@pytest.mark.parametrize(("right", "samples", "other", "of"), [(30, 50, 45, 50), (138, 200, 700, 1000), (5, 5, 0, 6)])
def test_a_figure_of_so_many_samples_has_its_own_sampling_error(right, samples, other, of):
    total = right + other

    def mass(k: int) -> float:  # hypergeometric: k of the right ones among the samples
        return comb(samples, k) * comb(of, total - k) / comb(samples + of, total)

    masses = [mass(k) for k in range(max(0, total - of), min(samples, total) + 1)]
    slow = sum(each for each in masses if each <= mass(right) * (1 + 1e-7))
    assert chance_of(Accuracy(right, samples), other / of, of) == pytest.approx(slow, rel=1e-6)
    assert chance_of(Accuracy(right, samples), other / of, of) > chance_of(Accuracy(right, samples), other / of)


def test_an_accuracy_that_is_not_the_expected_one_is_told_with_both_figures():
    found = Accuracy(138, 1000)
    assert remark_on_expected(found, None) == remark_on_expected(found, (0.14, None)) == ""
    assert remark_on_expected(found, (0.58, None)) == (
        "The model is right on 13.8% of the 1000 verified samples, but 58.0% are expected (expect_accuracy), which "
        "sampling error does not explain: p is 5e-185. If the samples were drawn because they looked wrong, say so "
        "(drawn='suspects')."
    )
    assert "58.0% of 500 samples are expected" in remark_on_expected(found, (0.58, 500))
    near = [k for k in range(201) if not remark_on_expected(Accuracy(k, 200), (0.77, None))]
    masses = binomial(200, 0.77)
    assert near == [k for k in range(201) if sum(m for m in masses if m <= masses[k] * (1 + 1e-7)) >= DOUBT]
    assert (near[0], near[-1]) == (136, 171)


def test_weights_count_as_fewer_samples():
    labels, predicted = torch.zeros(100).long(), (torch.arange(100) >= 50).long()
    assert accuracy_of(predicted, labels) == accuracy_of(predicted, labels, torch.ones(100)) == Accuracy(50, 100)
    weights = np.where(np.arange(100) < 50, 3.0, 1.0)  # (Σ w)² / Σ w² = 200² / 500
    assert accuracy_of(predicted, labels, weights) == Accuracy(60, 80)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (76.9, (0.769, None)),
        ("76.9", (0.769, None)),
        ("76.9%", (0.769, None)),
        (100, (1.0, None)),
        ("769/1000", (0.769, 1000)),
        ("0/50", (0.0, 50)),
        (None, None),
    ],
    ids=str,
)
def test_an_expected_accuracy_is_a_percentage_or_right_of_samples(given, expected):
    found = CorrectOptions(expect_accuracy=given).expected
    assert found == (None if expected is None else (pytest.approx(expected[0]), expected[1]))


@pytest.mark.parametrize(
    "given", [0.769, 1, 0, 100.1, -3, "high", "5/0", "1001/1000", "3/7.5", True, float("nan"), "/"], ids=str
)
def test_what_is_no_percentage_is_refused(given):
    with pytest.raises(UsageError, match=r"must be a percentage above 1, such as 76\.9, or right/samples"):
        CorrectOptions(expect_accuracy=given)


# What stops, and what goes on


@pytest.fixture(scope="module")
def known():
    """A network that knows its samples, with inputs and labels."""
    x, y = small_data(400)
    return memorised(small_net(bn=False), x, y, steps=60), x, y


ABOUT: Mapping[str, object] = {"alpha": 100.0, "progress": False}


def test_the_call_notes_and_the_proof_stops_unless_something_is_said(known):
    model, x, y = known
    wrong = x.flip(1), y
    (note,) = verifix.correct(model, wrong, check_labels=False, **ABOUT).notes
    assert "near chance" in note
    assert verifix.correct(model, wrong, check_labels=False, check_inputs=False, **ABOUT).notes == (note,)
    match = (
        r"right on \d+ of the 400 verified samples .* Prepare the verified samples as in training .* check_inputs=False"
    )
    with pytest.raises(DataError, match=match):
        verifix.correct(model, wrong, check_labels=False, check_inputs=True, **ABOUT)
    with pytest.raises(DataError, match=match):
        verifix.prove(model, wrong, check_labels=False, **ABOUT, verified_from="unseen")
    verifix.prove(model, wrong, check_labels=False, check_inputs=False, **ABOUT, verified_from="unseen")
    assert verifix.correct(model, (x, y), check_inputs=True, **ABOUT).notes == ()
    with pytest.raises(UsageError, match="check_inputs is 'no'; it must be True, False or None"):
        verifix.correct(model, (x, y), check_inputs="no")


def test_an_expected_accuracy_stops_the_call_too(known):
    model, x, y = known
    found = 100 * float((model(x).argmax(1) == y).double().mean())
    half = torch.where(torch.arange(400)[:, None] % 3 > 0, x, x.flip(1))  # every third sample is prepared wrongly
    assert verifix.correct(model, (x, y), expect_accuracy=found, **ABOUT).notes == ()
    assert verifix.correct(model, (half, y), check_labels=False, **ABOUT).notes == ()
    with pytest.raises(DataError, match=rf"% of the 400 verified samples, but {found:.1f}% are expected"):
        verifix.correct(model, (half, y), check_labels=False, expect_accuracy=found, **ABOUT)
    (note,) = verifix.correct(
        model, (half, y), check_labels=False, expect_accuracy=found, check_inputs=False, **ABOUT
    ).notes
    assert "are expected" in note
    with pytest.raises(UsageError, match="verified_from is 'trusted'"):
        verifix.correct(model, (x, y), expect_accuracy=found, verified_from="trusted", **ABOUT)


def test_a_weighted_proof_is_compared_by_its_weights(known):
    model, x, y = known
    half = torch.where(torch.arange(400)[:, None] % 2 > 0, x, x.flip(1))
    right = model(half).argmax(1) == y
    weights = torch.where(right, 3.0, 1.0)
    heavy = 100 * float((weights * right).sum() / weights.sum())
    about = {"check_labels": False, **ABOUT}
    verifix.prove(model, (half, y), weights=weights, expect_accuracy=heavy, **about, verified_from="unseen")
    with pytest.raises(DataError, match="are expected"):
        verifix.prove(model, (half, y), expect_accuracy=heavy, **about, verified_from="unseen")


def test_samples_that_are_no_random_sample_are_not_compared_unless_they_are_weighted(known):
    model, x, y = known
    about = {"check_labels": False, "expect_accuracy": 99.9, **ABOUT}
    half = torch.where(torch.arange(400)[:, None] % 2 > 0, x, x.flip(1)), y
    for drawn in ("by-class", "suspects"):
        notes = verifix.correct(model, half, drawn=drawn, **about).notes
        assert f"expect_accuracy was not compared on the verified samples, because drawn is {drawn!r}." in notes
    for more in ({}, {"drawn": "random"}, {"drawn": "suspects", "weights": torch.arange(400) + 1.0}):
        with pytest.raises(DataError, match=r"but 99\.9% are expected"):
            verifix.prove(model, half, **about | more, verified_from="unseen")
    suspects = model(x).argmax(1) != y  # on which the model is wrong
    few = x[suspects].repeat(6, 1) + 0.001 * torch.randn(6 * int(suspects.sum()), 8), y[suspects].repeat(6)
    assert "near chance" not in "".join(
        verifix.correct(model, few, drawn="suspects", check_labels=False, **ABOUT).notes
    )
    assert "near chance" in "".join(verifix.correct(model, few, check_labels=False, **ABOUT).notes)


class Scaling(nn.Module):
    """A model that takes pixels of every dtype, as models with a first `x.float()` do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.float())


def test_8_bit_tensors_for_a_model_of_0_to_1_are_stopped(known):
    x = torch.rand(300, 8)
    y = (4 * x[:, 0]).long()
    model = Scaling(memorised(small_net(bn=False, classes=4), x, y, steps=150))
    right = DataLoader([(row, int(label)) for row, label in zip(x, y, strict=True)], 50)
    bytes_ = [((255 * row).byte(), int(label)) for row, label in zip(x, y, strict=True)]
    expected = 100 * float((model(x).argmax(1) == y).double().mean())
    assert verifix.correct(model, right, expect_accuracy=expected, check_inputs=True, **ABOUT).notes == ()
    with pytest.raises(DataError, match=r"are expected"):
        verifix.correct(model, DataLoader(bytes_, 50), check_labels=False, expect_accuracy=expected, **ABOUT)


def test_texts_with_the_numbers_of_another_tokenizer_are_stopped():
    torch.manual_seed(0)
    tokens = torch.randint(1, 60, (300, 6))
    y = tokens[:, 0] % 6
    model = nn.Sequential(nn.Embedding(60, 16), nn.Flatten(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 6))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(tokens), y).backward()
        optimizer.step()
    model.eval()
    others = torch.cat([torch.zeros(1).long(), 1 + torch.randperm(59)])[tokens]
    assert verifix.correct(model, (tokens, y), check_inputs=True, **ABOUT).notes == ()
    with pytest.raises(DataError, match="near chance"):
        verifix.correct(model, (others, y), check_labels=False, check_inputs=True, **ABOUT)


# The command, on a fast sample of the grid that benchmarks/preprocessing.py measures


@pytest.fixture(scope="module")
def trained(vision, tmp_path_factory):
    """Three networks that learned 20% wrong labels, each with its images."""
    made = {}
    for kind in ("conv_bn", "conv_plain", "timm_resnet"):
        root = tmp_path_factory.mktemp(kind)
        made[kind] = grid.train(kind, 0, 0.2, root, epochs=8), root
    return made


WRONG = ("size 24", "centre crop 0.6", "not normalised", "0 to 255, normalised", "red and blue exchanged", "grey")


@pytest.mark.parametrize("kind", ["conv_bn", "conv_plain", "timm_resnet"])
def test_nothing_is_written_where_the_accuracy_is_not_the_expected_one(trained, kind):
    case, root = trained[kind]
    assert grid.corrected(case, "right", root, *grid.expecting(case)) == (0, True)
    beyond = 0
    for cell in WRONG:
        samples = grid.seen(case, *grid.cells(case.right)[cell])
        alone, expecting, due = grid.stopped(case, samples)
        assert expecting or not due
        if due:
            assert grid.corrected(case, cell, root, *grid.expecting(case)) == (5, False), cell
            beyond += 1
        if kind == "conv_bn" and cell in ("not normalised", "0 to 255, normalised"):
            assert alone
            assert grid.corrected(case, cell, root, "--no-check-labels") == (5, False), cell
            assert grid.corrected(case, cell, root, "--no-check-labels", "--force") == (0, True), cell
    assert beyond >= 4


def words(case: grid.Case, root: Path, *more: object, data: str = "rgb") -> list[str]:
    flags = [part for name, value in case.right.items() for part in (f"--{name.replace('_', '-')}", value)]
    named = ["--model", case.name, "--num-classes", 10] if case.name.startswith("timm") else ["--model", case.name]
    given = ["--checkpoint", root / "net.pt", "--verified", case.folders[data], "--verified-from", "unseen"]
    out = ["--out", root / "out.pt", "--alpha", "1e4", "--no-progress", "--limit", "120", "--drawn", "random"]
    return [str(word) for word in ("correct", *named, *given, *flags, *out, *more)]


def test_the_message_says_the_figures_the_preprocessing_and_what_to_try(trained, capsys):
    case, root = trained["conv_plain"]
    assert main(words(case, root, "--size", "24", "--proof", "none", "--expect-accuracy", "80")) == 5
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(line) < 900
    for part in (
        "of the 120 verified samples, but 80.0% are expected",
        "Preprocessing in force: resized to 24×24, mean 0.491,0.482,0.447, std 0.247,0.243,0.262. Give that of",
        "--size, --crop-pct, --interpolation, --mean, --std, --in-chans",
        "or pass --force or --no-check-inputs (check_inputs=False) if it is right as it is",
    ):
        assert part in line
    assert not list(root.glob("out*"))


def test_test_samples_are_compared_as_well(trained, capsys):
    case, root = trained["conv_plain"]
    test = ["--test", case.folders["grey"], "--expect-accuracy", "{}/{}".format(*case.measured)]
    assert main(words(case, root, *test)) == 5
    assert "of the 500 test samples, but" in capsys.readouterr().err
    assert not list(root.glob("out*"))


def test_picked_samples_are_not_compared(trained, capsys):
    case, root = trained["conv_plain"]
    argv = words(case, root, "--proof", "none", "--expect-accuracy", "80", "--trusted-count", "100")
    argv[argv.index("--verified")] = "--trusted"
    argv[argv.index("--verified-from") + 1] = "trusted"
    del argv[argv.index("--drawn") : argv.index("--drawn") + 2]
    assert main(argv) == 2
    assert "--expect-accuracy says nothing on samples that --trusted picks" in capsys.readouterr().err


def test_weights_are_counted_by_the_command(trained, capsys):
    case, root = trained["conv_plain"]
    shares = ",".join(["0.1"] * 10)
    more = ("--proof", "split", "--drawn", "by-class", "--class-shares", shares, "--expect-accuracy")
    assert main(words(case, root, *more, "30")) == 5
    assert "weighted verified samples, but 30.0% are expected" in capsys.readouterr().err
    assert main(words(case, root, *more, "{}/{}".format(*case.measured))) in (0, 3)


def test_score_and_compare_are_checked_too(trained, tmp_path, capsys):
    case, root = trained["conv_bn"]
    flags = [part for name, value in case.right.items() for part in (f"--{name}", str(value))]
    data = ["--model", case.name, "--data", str(case.folders["rgb"]), "--no-progress"]
    measured = ["--expect-accuracy", "{}/{}".format(*case.measured)]
    net = str(root / "net.pt")
    assert main(["score", net, *data, *flags, *measured]) == 0
    assert "right" in capsys.readouterr().out
    assert main(["score", net, *data, *measured]) == 5
    err = capsys.readouterr().err
    assert "of the 500 given samples" in err
    assert "omit --expect-accuracy" in err
    assert main(["score", net, *data]) == 0
    assert "differ from those that the model was trained on" in capsys.readouterr().out
    assert main(["compare", net, net, *data, *flags, *measured]) == 0
    assert main(["compare", net, net, *data]) == 5
    assert "pass --no-check-inputs if it is right as it is" in capsys.readouterr().err
    assert main(["compare", net, net, *data, "--no-check-inputs"]) == 0
    assert "differ from those that the model was trained on" in capsys.readouterr().out
    labels = np.arange(60) % 3
    np.save(tmp_path / "p.npy", (labels + 1) % 3)
    np.save(tmp_path / "y.npy", labels)
    files = ["compare", str(tmp_path / "p.npy"), str(tmp_path / "p.npy"), "--data", str(tmp_path / "y.npy")]
    assert main(files) == 0  # nothing was prepared
    assert main([*files, "--expect-accuracy", "90"]) == 5


def test_the_preprocessing_stands_beside_the_verdict(trained, tmp_path, capsys):
    case, root = trained["timm_resnet"]
    report, result = root / "r.html", root / "r.json"
    more = [
        "--proof",
        "split",
        "--drawn",
        "random",
        "--recipe",
        "verifix",
        "--report",
        report,
        "--result",
        result,
        "--force",
    ]
    assert main(words(case, root, *more)) == 0
    out = capsys.readouterr().out
    line = (
        "Preprocessing of the samples: timm's data config: 32×32 (bilinear, center crop 1), mean 0.5,0.5,0.5, std "
        "0.5,0.5,0.5; --size, --crop-pct, --mean, --std from the command line."
    )
    above, _, below = out.partition(line)
    assert below
    assert above.splitlines()[0].endswith(" verified samples that no stage and no strength has seen.")
    assert "the verdict needs p < 0.025" in above.splitlines()[-1]
    found = json.loads(result.read_text())
    keys = list(found)
    assert keys[keys.index("verdict") + 1] == "preprocessing"
    assert f"Preprocessing of the samples: {found['preprocessing']}." == line
    page = report.read_text()
    assert page.index("timm&#39;s data config: 32×32") < page.index("Before and after</h2>")
    for file in (*root.glob("out*"), report, result):
        file.unlink()


# Further kinds of inputs, as files


def folder_of(root: Path, images, labels) -> Path:
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(root / str(label) / f"{i}.png")
    return root


def test_16_bit_images_are_those_of_8_bits(trained, tmp_path, capsys):
    case, root = trained["conv_plain"]
    files = sorted(case.folders["grey"].rglob("*.png"))[:200]
    labels = [int(file.parent.name) for file in files]
    deep = [Image.fromarray(np.asarray(Image.open(file)).astype(np.uint16) * 257) for file in files]
    scores = []
    for name, images in (("8", [Image.open(file) for file in files]), ("16", deep)):
        data = folder_of(tmp_path / name, images, labels)
        flags = [part for key, value in case.right.items() for part in (f"--{key}", str(value))]
        argv = ["score", str(root / "net.pt"), "--model", case.name, "--data", str(data), *flags, "--json"]
        assert main([*argv, "--no-progress"]) == 0
        scores.append(json.loads(capsys.readouterr().out)["cross_entropy"])
    assert scores[0] == scores[1]


def test_arrays_of_0_to_255_are_stopped_and_8_bit_ones_are_divided(trained, tmp_path, capsys):
    case, root = trained["conv_bn"]
    files = sorted(case.folders["rgb"].rglob("*.png"))
    x, y = np.stack([np.asarray(Image.open(file)) for file in files]), [int(file.parent.name) for file in files]
    np.savez(tmp_path / "bytes.npz", x=x, y=y)
    np.savez(tmp_path / "floats.npz", x=x.transpose(0, 3, 1, 2).astype(np.float32), y=y)
    flags = ["--mean", case.right["mean"], "--std", case.right["std"], "--proof", "none", "--alpha", "1e4"]
    argv = ["correct", "--model", case.name, "--checkpoint", str(root / "net.pt"), "--verified-from", "unseen", *flags]
    argv += ["--out", str(tmp_path / "o.pt"), "--no-progress", "--verified"]
    assert main([*argv, str(tmp_path / "bytes.npz")]) == 0
    told = "Preprocessing of the samples: arrays: 32×32, 8-bit numbers divided by 255, mean 0.491,0.482,0.447"
    assert told in capsys.readouterr().out
    for file in tmp_path.glob("o.*"):
        file.unlink()
    assert main([*argv, str(tmp_path / "floats.npz"), "--no-check-labels"]) == 5
    assert not list(tmp_path.glob("o.*"))
    err = capsys.readouterr().err
    assert "differ from those that the model was trained on" in err
    assert "Preprocessing in force: arrays: 32×32, numbers as they are, mean 0.491" in err


# What the page says


def test_the_rates_of_the_page_are_those_measured():
    root = Path(__file__).resolve().parents[2]
    found = json.loads((root / "benchmarks" / "results" / "preprocessing.json").read_text())
    page = (root / "docs" / "preprocessing.md").read_text(encoding="utf-8")
    for what in ("right", "stopped", "stopped_with_expected"):
        assert grid.table(found, what) in page
    assert (found["written_beyond_sampling_error"], found["commands_beyond_sampling_error"]) == (0, 33)
    assert (found["right_runs"], found["right_stopped"], found["right_stopped_with_expected"]) == (80, 0, 0)
    text = " ".join(page.split())
    assert "wrote 0 checkpoints in the 33 cells" in text
    assert "80 runs on twenty networks" in text
    assert len({row["seed"] for row in found["right"]}) == 20
