"""Labels in another order, inputs prepared in another way, and copies: seen before anything is corrected."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import verifix
from tests import tiny
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import DataError, UsageError
from verifix.capture.input_statistics import watching_first_norm
from verifix.cli.main import main
from verifix.evaluation.duplicates import check_contradictions, without_leaks
from verifix.evaluation.label_order import find_remapping
from verifix.io.data.open import open_data
from verifix.io.data.subsample import by_class, limited
from verifix.io.options import DataOptions
from verifix.model.samples import read_samples

CLASSES = 12
AS_TEXT = sorted(range(CLASSES), key=str)
NET = """
from torch import nn

def build():
    features = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*features, nn.Linear(16 * 36, 12))

def plain():
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 12))
"""
NORMALISE = ["--mean", "0.5,0.5,0.5", "--std", "0.2,0.2,0.2"]


# Predictions of a model that is right with some probability, without a model


def predictions(labels: np.ndarray, classes: int, seed: int, wrong: float, kind: str = "even") -> torch.Tensor:
    """Predict as a model does that has learned `wrong` of its labels wrong, all evenly or as one other class."""
    generator = np.random.default_rng(seed)
    step = {"even": generator.integers(1, classes, len(labels)), "next": 1, "pairs": 1 - 2 * (labels % 2)}[kind]
    other = np.minimum(labels + step, classes - 1) if kind == "pairs" else (labels + step) % classes
    found = np.where(generator.random(len(labels)) < wrong, other, labels)
    blunder = generator.random(len(labels)) < 0.05
    return torch.from_numpy(np.where(blunder, generator.integers(0, classes, len(labels)), found))


def remapping(labels: np.ndarray, predicted: torch.Tensor, classes: int = CLASSES):
    return find_remapping(predicted, torch.from_numpy(labels), classes)


def test_the_best_assignment_is_that_of_all_permutations():
    from verifix.evaluation.label_order import _assigned

    generator = np.random.default_rng(0)
    for size in (2, 3, 4, 5) * 10:
        table = generator.integers(0, 9, (size, size))
        order = _assigned(table)
        assert sorted(order) == list(range(size))
        most = max(sum(table[i, p] for i, p in enumerate(way)) for way in itertools.permutations(range(size)))
        assert sum(table[np.arange(size), order]) == most


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["even", "next"])
def test_mistakes_that_are_known_are_named(seed, kind):
    true = np.arange(240) % CLASSES
    predicted = predictions(true, CLASSES, seed, {"even": 0.3, "next": 0.2}[kind], kind)
    assert remapping(true, predicted) is None
    by_text = np.argsort(AS_TEXT)[true]  # as a library that sorts folders numbers them
    found = remapping(by_text, predicted)
    assert "the class names were sorted as text (0, 1, 10, 11, 2, …) to number the labels" in found.kind
    assert found.outputs == {i: AS_TEXT[i] for i in range(2, 12)}
    found = remapping(np.array(AS_TEXT)[true], predicted)
    assert "the class names were sorted as text (0, 1, 10, 11, 2, …) to number the model's outputs" in found.kind
    for missing in (0, 3, 8):
        there = true != missing
        shifted = np.where(true > missing, true - 1, true)[there]
        found = remapping(shifted, predicted[there])
        assert f"class {missing} was missing" in found.kind
        assert found.outputs == {i: i + 1 for i in range(missing, 11)}
    one_based = np.minimum(true + 1, 11)[true < 11]
    assert "count from 1" in remapping(one_based, predicted[true < 11]).kind
    swapped = np.select([true == 4, true == 9], [9, 4], true)
    found = remapping(swapped, predicted)
    assert (found.kind, found.outputs) == ("classes 4 and 9 are exchanged", {4: 9, 9: 4})
    turned = np.random.default_rng(seed).permutation(CLASSES)
    found = remapping(turned[true], predicted)
    assert found.outputs == {int(turned[i]): i for i in range(CLASSES) if turned[i] != i}


def test_wrong_labels_in_training_are_no_other_order():
    alarms = Counter()
    for seed in range(400):
        generator = np.random.default_rng(seed)
        classes = int(generator.integers(2, 13))
        count = int(generator.choice([50, 100, 200, 1000]))
        kind = ("even", "next", "pairs")[seed % 3]
        true = generator.integers(0, classes, count)
        rate = 0.4 if classes == 2 else float(generator.choice([0.3, 0.4, 0.45]))
        alarms[remapping(true, predictions(true, classes, seed, rate, kind), classes) is not None] += 1
    assert alarms == {False: 400}


def test_labels_that_mean_nothing_are_no_other_order():
    generator = np.random.default_rng(0)
    for _ in range(200):
        classes, count = int(generator.integers(2, 13)), int(generator.choice([50, 200, 1000]))
        labels, predicted = generator.integers(0, classes, (2, count))
        assert remapping(labels, torch.from_numpy(predicted), classes) is None


def test_one_class_that_a_model_gets_wrong_is_no_other_order():
    true = np.arange(600) % 6
    predicted = predictions(true, 6, 0, 0.1).numpy()
    hard = (true == 2) & (np.random.default_rng(1).random(600) < 0.75)
    predicted[hard] = 5
    assert remapping(true, torch.from_numpy(predicted), 6) is None
    few = (true != 5) | (np.arange(600) < 60)  # class 5 hardly there
    assert remapping(true[few], torch.from_numpy(predicted[few]), 6) is None
    constant = torch.full((600,), 3)
    assert remapping(true, constant, 6) is None


def test_many_classes_are_looked_at_or_left_alone():
    true = np.arange(4000) % 1000
    assert remapping(true, torch.from_numpy(true.copy()), 1000) is None
    assert remapping(np.roll(np.arange(1000), 7)[true], torch.from_numpy(true.copy()), 1000).samples == 4000
    some = np.array([5, 3000, 20_000])[np.arange(90) % 3]
    found = remapping(np.array([3000, 5, 20_000])[np.arange(90) % 3], torch.from_numpy(some), 21_000)
    assert found.outputs == {5: 3000, 3000: 5}


# A real network, real folders, the real command


def pixels(labels: np.ndarray, seed: int) -> np.ndarray:
    """Images of 8 × 8: one random pattern per class, with noise."""
    patterns = np.random.default_rng(99).uniform(70, 190, (CLASSES, 8, 8, 3))
    noise = np.random.default_rng(seed).normal(0, 45, (len(labels), 8, 8, 3))
    return (patterns[labels] + noise).clip(0, 255).astype(np.uint8)


def inputs_of(images: np.ndarray) -> torch.Tensor:
    return ((torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255) - 0.5) / 0.2


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A network of 12 classes that learned a third of its labels wrong; folders by number; arrays."""
    root = tmp_path_factory.mktemp("guards")
    (root / "net.py").write_text(NET)
    true = np.arange(480) % CLASSES
    generator = np.random.default_rng(0)
    given = np.where(generator.random(480) < 0.33, generator.integers(0, CLASSES, 480), true)
    x, y = inputs_of(pixels(true, 0)), torch.from_numpy(given)
    namespace: dict = {}
    exec(NET, namespace)
    for name in ("build", "plain"):
        torch.manual_seed(0)
        model = namespace[name]()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for order in (torch.randperm(480) for _ in range(25)):
            for part in order.split(48):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[part]), y[part]).backward()
                optimizer.step()
        save_file(model.state_dict(), root / f"{name}.safetensors")
    labels = np.arange(240) % CLASSES
    images = pixels(labels, 1)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / "numbers" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / "numbers" / str(label) / f"{i}.png")
    np.savez(root / "verified.npz", x=images, y=labels)
    np.savez(root / "test.npz", x=pixels(labels, 2), y=labels)
    return root


def trained(world: Path, name: str = "build") -> nn.Module:
    from safetensors.torch import load_file

    namespace: dict = {}
    exec(NET, namespace)
    model = namespace[name]()
    model.load_state_dict(load_file(world / f"{name}.safetensors"))
    return model.eval()


def correct(world: Path, tmp_path: Path, verified: object, *more: object, normalise=NORMALISE) -> int:
    words = ["correct", "--model", f"py:{world / 'net.py'}:build", "--checkpoint", world / "build.safetensors"]
    words += [
        "--verified",
        verified,
        "--verified-from",
        "unseen",
        "--alpha",
        "1000",
        "--proof",
        "none",
        "--no-progress",
        "--force",
    ]
    return main([str(w) for w in [*words, *normalise, "--out", tmp_path / "fixed.safetensors", *more]])


def sorted_by_text(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a folder as torchvision's ImageFolder does: classes are numbered in the order of their names."""
    names = sorted(folder.name for folder in root.iterdir())
    pairs = [
        (np.array(Image.open(file)), i) for i, name in enumerate(names) for file in sorted((root / name).iterdir())
    ]
    return np.stack([image for image, _ in pairs]), np.array([label for _, label in pairs])


def linked(world: Path, root: Path, names: dict[int, str]) -> Path:
    """Make a folder of links to some class folders, under other names."""
    root.mkdir()
    for number, name in names.items():
        (root / name).symlink_to(world / "numbers" / str(number), target_is_directory=True)
    return root


def test_the_three_faults_are_stopped_and_the_right_labels_are_not(world, tmp_path, capsys):
    images, labels = sorted_by_text(world / "numbers")
    np.savez(tmp_path / "text.npz", x=images, y=labels)
    assert correct(world, tmp_path, tmp_path / "text.npz") == 5
    err = capsys.readouterr().err
    assert "probably the class names were sorted as text (0, 1, 10, 11, 2, …) to number the labels" in err
    assert "2 → 10, 3 → 11" in err
    assert "--no-check-labels" in err
    for missing in (0, 2, 6):
        folder = linked(world, tmp_path / f"no{missing}", {i: f"{i:02d}" for i in range(CLASSES) if i != missing})
        images, labels = sorted_by_text(folder)
        np.savez(tmp_path / "missing.npz", x=images, y=labels)
        assert correct(world, tmp_path, tmp_path / "missing.npz") == 5
        assert f"probably class {missing} was missing when the labels were numbered" in capsys.readouterr().err
    folder = linked(world, tmp_path / "swapped", {i: {3: "7", 7: "3"}.get(i, str(i)) for i in range(CLASSES)})
    assert correct(world, tmp_path, folder) == 5
    assert "probably classes 3 and 7 are exchanged" in capsys.readouterr().err
    assert not list(tmp_path.glob("fixed*"))
    assert correct(world, tmp_path, folder, "--no-check-labels") == 0
    for right in (world / "numbers", world / "verified.npz"):
        assert correct(world, tmp_path, right) == 0


def test_folders_are_mapped_by_number_or_name_whatever_is_missing(world, tmp_path, capsys):
    names = [f"name{chr(ord('z') - i)}" for i in range(CLASSES)]  # their order as text is not that of the outputs
    every = ",".join(names)
    eleven = [i for i in range(CLASSES) if i != 4]
    numbered = linked(world, tmp_path / "a", {i: str(i) for i in eleven})
    named = linked(world, tmp_path / "b", {i: names[i] for i in eleven})
    for folder, flags in ((numbered, []), (named, ["--classes", every])):
        source = open_data(folder, DataOptions(classes=every if flags else None))
        assert sorted(set(source.dataset.labels)) == eleven
        assert correct(world, tmp_path, folder, *flags) == 0
        assert f"No verified sample has the label {names[4] if flags else 4}:" in capsys.readouterr().out
    assert correct(world, tmp_path, named) == 5
    assert "give --classes with all class names in the order of the outputs" in capsys.readouterr().err
    assert correct(world, tmp_path, named, "--classes", ",".join(names[i] for i in eleven)) == 5
    assert "11 class names" in capsys.readouterr().err
    assert correct(world, tmp_path, named, "--classes", ",".join(sorted(names))) == 5
    err = capsys.readouterr().err
    assert "another order than the model's outputs" in err


def test_a_test_set_in_another_order_is_stopped_as_well(world, tmp_path, capsys):
    with np.load(world / "test.npz") as test:
        np.savez(tmp_path / "t.npz", x=test["x"], y=np.array(AS_TEXT)[test["y"]])
    assert correct(world, tmp_path, world / "verified.npz", "--test", tmp_path / "t.npz") == 5
    assert "the labels of the test samples seem to be in another order" in capsys.readouterr().err


def test_a_score_says_that_labels_or_inputs_look_odd(world, tmp_path, capsys):
    with np.load(world / "test.npz") as test:
        np.savez(tmp_path / "t.npz", x=test["x"], y=np.array(AS_TEXT)[test["y"]])
    score = ["score", world / "build.safetensors", "--model", f"py:{world / 'net.py'}:build", "--no-progress"]
    for data, flags, odd in (
        (world / "test.npz", NORMALISE, ""),
        (tmp_path / "t.npz", NORMALISE, "in another order than the model's outputs"),
        (world / "test.npz", [], "differ from those that the model was trained on"),
    ):
        assert main([str(w) for w in (*score, "--data", data, *flags)]) == 0
        out = capsys.readouterr().out
        assert odd in out
        assert ("another order" in out or "differ from those" in out) == bool(odd)


def test_the_call_checks_labels_too_and_can_be_told_not_to(world):
    model = trained(world)
    with np.load(world / "verified.npz") as data:
        x, y = inputs_of(data["x"]), torch.from_numpy(data["y"])
    by_text = torch.tensor(np.argsort(AS_TEXT))[y]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DataError, match="class names were sorted as text"):
        verifix.correct(model, (x, by_text), alpha=100, progress=False)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert verifix.correct(model, (x, by_text), alpha=100, check_labels=False, progress=False).changed
    with pytest.raises(UsageError, match="check_labels is 'no'"):
        verifix.correct(model, (x, y), check_labels="no")
    (note,) = verifix.correct(model, (x, y[torch.randperm(240)]), alpha=100, progress=False).notes
    assert "near chance" in note


# Preprocessing


def test_the_inputs_of_the_first_norm_are_summed_up_right():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    model[1].running_mean.copy_(torch.randn(4))
    model[1].running_var.copy_(torch.rand(4) + 0.5)
    x = torch.randn(12, 3, 6, 6)
    with torch.no_grad(), watching_first_norm(model.eval()) as seen:
        for part in x.split([5, 5, 2]):
            model(part)
        rows = model[0](x).double().movedim(1, -1).reshape(-1, 4)
    assert (seen.name, seen.rows) == ("1", 12 * 16)
    running = model[1].running_var.double() + 1e-5
    mean = ((rows.mean(0) - model[1].running_mean.double()).abs() / running.sqrt()).median()
    spread = ((rows.var(0, correction=0) + 1e-5) / running).sqrt().median()
    torch.testing.assert_close(torch.tensor(seen.distances()), torch.stack([mean, spread]).float())
    assert not model[1]._forward_pre_hooks


@pytest.mark.parametrize(
    ("what", "flags", "told"),
    [
        ("right", NORMALISE, False),
        ("another mean and std", ["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"], False),
        ("not normalised", [], True),
        ("0 to 255", ["--mean", "0,0,0", "--std", "0.004,0.004,0.004"], True),
        ("half", ["--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5"], True),
    ],
)
def test_inputs_unlike_those_in_training_are_told(world, tmp_path, capsys, what, flags, told):
    code = correct(world, tmp_path, world / "verified.npz", "--no-check-labels", "--json", normalise=flags)
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert code == 0
    assert any("differ from those that the model was trained on" in text for text in result["notes"]) == told, what
    assert (result["provenance"]["notes"] != []) == told
    assert ("note: The inputs differ from those that the model was trained on" in err) == told
    if told:
        assert correct(world, tmp_path, world / "verified.npz", "--no-check-labels", normalise=flags) == 0
        assert capsys.readouterr().out.count("differ from those that the model was trained on") == 1


def test_few_samples_few_classes_and_models_without_a_norm_are_not_remarked_on(world):
    with np.load(world / "verified.npz") as data:
        x, y = inputs_of(data["x"]), torch.from_numpy(data["y"])
    for chosen in (torch.arange(50), y < 2, y < 6):
        assert verifix.correct(trained(world), (x[chosen], y[chosen]), alpha=100, progress=False).notes == ()
    far = 100 * x + 7
    about = {"alpha": 100, "check_labels": False, "progress": False}
    assert "differ from those" in verifix.correct(trained(world), (far, y), **about).notes[0]
    instance = nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(192, 12)).eval()
    for model in (trained(world, "plain"), instance):
        assert not [text for text in verifix.correct(model, (far, y), **about).notes if "differ from those" in text]


def test_exchanged_colours_are_told(world):
    with np.load(world / "verified.npz") as data:
        x, y = inputs_of(data["x"]), torch.from_numpy(data["y"])
    (note,) = verifix.correct(trained(world), (x.flip(1), y), alpha=100, check_labels=False, progress=False).notes
    assert "With red and blue exchanged, the model is right on" in note


# Copies and leaks


def test_one_image_with_two_labels_is_refused_by_both_names(tmp_path, capsys, world):
    images, labels = pixels(np.arange(60) % CLASSES, 5), np.arange(60) % CLASSES
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (tmp_path / "v" / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(tmp_path / "v" / str(label) / f"{i}.png")
    assert correct(world, tmp_path, tmp_path / "v") == 0
    turned = Image.Exif()
    turned[0x0112] = 6
    copy = tmp_path / "v" / "3" / "copy.png"
    Image.fromarray(images[0]).convert("RGBA").transpose(Image.Transpose.ROTATE_90).save(copy, exif=turned)
    capsys.readouterr()
    assert correct(world, tmp_path, tmp_path / "v") == 5
    err = capsys.readouterr().err
    assert "/v/0/0.png" in err
    assert "/v/3/copy.png" in err
    assert "are the same input but have the labels 0 and 3; correct one of them" in err
    copy.rename(tmp_path / "v" / "0" / "copy.png")
    assert correct(world, tmp_path, tmp_path / "v") == 0
    assert "1 of the 61 samples are copies of others; copies share a fold." in capsys.readouterr().out


def test_copies_of_other_pixels_but_the_same_picture_share_a_fold(tmp_path):
    from verifix.model.folds import split_folds

    generator = np.random.default_rng(0)
    for i in range(20):
        for label in "01":
            (tmp_path / label).mkdir(exist_ok=True)
            Image.fromarray(generator.integers(0, 256, (6, 6, 3), np.uint8)).save(tmp_path / label / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 3
    for i in range(5):
        Image.open(tmp_path / "0" / f"{i}.png").rotate(180).save(tmp_path / "0" / f"x{i}.png", exif=exif)
    samples = read_samples(open_data(tmp_path, DataOptions()))
    assert len(set(samples.digests)) == 45
    assert len(set(samples.fingerprints)) == 40
    assert check_contradictions(samples) == 5
    again = read_samples(samples.subset([3, 1]).source)  # from memory, as samples that were picked are
    assert again.fingerprints == (samples.fingerprints[3], samples.fingerprints[1])
    assert again.where(1) == samples.where(1)
    home = {i: k for k, fold in enumerate(split_folds(samples, 4, 0)) for i in fold}
    names = [Path(samples.where(i)).name for i in range(45)]
    for i in range(5):
        assert home[names.index(f"{i}.png")] == home[names.index(f"x{i}.png")]


def test_verified_samples_are_left_out_of_the_test(world, tmp_path, capsys):
    with np.load(world / "verified.npz") as verified, np.load(world / "test.npz") as test:
        x, y = (
            np.concatenate([test["x"][:100], verified["x"][:30]]),
            np.concatenate([test["y"][:100], verified["y"][:30]]),
        )
        np.savez(tmp_path / "leaky.npz", x=x, y=y)
        np.savez(tmp_path / "clean.npz", x=x[:100], y=y[:100])
    results = []
    for name in ("leaky", "clean"):
        assert correct(world, tmp_path, world / "verified.npz", "--test", tmp_path / f"{name}.npz", "--json") == 0
        out, err = capsys.readouterr()
        results.append(json.loads(out))
        text = "30 of the 130 test samples are among those that the correction is made from"
        assert (text in err, any(text in note for note in results[-1]["notes"])) == (name == "leaky",) * 2
    assert results[0]["test"] == results[1]["test"]
    assert results[0]["test"]["samples"] == 100
    assert correct(world, tmp_path, world / "verified.npz", "--test", world / "numbers") == 5
    assert "all 240 test samples are among those" in capsys.readouterr().err


def test_samples_of_earlier_moments_are_left_out_of_the_test_too(world, tmp_path, capsys):
    moments = tmp_path / "m.safetensors"
    assert correct(world, tmp_path, world / "verified.npz", "--save-moments", moments) == 0
    with np.load(world / "test.npz") as test:
        np.savez(tmp_path / "more.npz", x=test["x"][:60], y=test["y"][:60])
    more = ["--moments", moments, "--test", world / "verified.npz"]
    assert correct(world, tmp_path, tmp_path / "more.npz", *more) == 5
    assert "all 240 test samples" in capsys.readouterr().err


def test_leaks_are_found_by_input_or_by_pixels():
    x, y = torch.randn(20, 4), torch.arange(20) % 2
    verified, test = read_samples((x[:12], y[:12])), read_samples((x[8:], y[8:]))
    kept = without_leaks(test, [verified])
    left = test.subset(kept)
    assert kept == list(range(4, 12))
    assert torch.equal(next(left.batches(range(8), 8)).inputs, x[12:])
    assert (left.labels.tolist(), left.digests) == (y[12:].tolist(), test.digests[4:])
    assert without_leaks(left, [verified]) == list(range(8))
    assert len(without_leaks(test, [], frozenset(read_samples((x[19:], y[19:])).digests))) == 11
    prints = replace(verified, digests=(b"",) * 12, prints=verified.digests)
    assert len(without_leaks(test, [prints])) == 8


# Moments


def test_moments_say_how_their_samples_were_prepared(world, tmp_path, capsys):
    moments = tmp_path / "m.safetensors"
    assert correct(world, tmp_path, world / "verified.npz", "--save-moments", moments) == 0
    saved = verifix.SavedMoments.load(moments)
    assert saved.verified_from == "unseen"
    assert "mean 0.5,0.5,0.5, std 0.2,0.2,0.2" in saved.preparation
    again = [world / "test.npz", "--moments", moments]
    assert correct(world, tmp_path, *again) == 0
    capsys.readouterr()
    other = ["--mean", "0.4,0.5,0.5", "--std", "0.2,0.2,0.2"]
    assert correct(world, tmp_path, *again, normalise=other) == 5
    err = capsys.readouterr().err
    assert "m.safetensors holds moments of samples that were preprocessed differently" in err
    assert "mean 0.5,0.5,0.5" in err
    assert "mean 0.4,0.5,0.5" in err
    silent = verifix.collect_moments(trained(world), (torch.randn(20, 3, 8, 8), torch.arange(20) % 2), progress=False)
    silent.save(tmp_path / "silent.safetensors")
    assert verifix.SavedMoments.load(tmp_path / "silent.safetensors").preparation is None
    assert correct(world, tmp_path, world / "test.npz", "--moments", tmp_path / "silent.safetensors") == 0


@pytest.mark.parametrize(
    ("then", "now", "code"), [("trusted", "unseen", 5), ("training", "unseen", 5), ("unseen", "training", 0)]
)
def test_moments_of_lesser_samples_do_not_count_with_better_ones(world, tmp_path, capsys, then, now, code):
    moments = tmp_path / "m.safetensors"
    said = ["--verified-from", then, "--save-moments", moments]
    assert correct(world, tmp_path, world / "verified.npz", *said) == 0
    capsys.readouterr()
    said = ["--verified-from", now, "--moments", moments]
    assert correct(world, tmp_path, world / "test.npz", *said) == code
    refused = f"moments of samples with verified_from '{then}', but now it is '{now}'" in capsys.readouterr().err
    assert refused == (code == 5)


def test_moments_of_picked_samples_do_not_count_with_verified_ones(monkeypatch):
    x, y = small_data(200)
    model = memorised(small_net(), x, y, steps=20)
    trusted = verifix.trust(model, (x[:100], y[:100]), count=60, progress=False)
    moments = verifix.collect_moments(model, trusted.source, progress=False)
    assert moments.verified_from == "trusted"
    monkeypatch.setattr("verifix.preflight.collect_and_try", lambda *_: pytest.fail("collected"))
    for call in (verifix.correct, verifix.prove):
        with pytest.raises(DataError, match="verified_from 'trusted', but now it is 'unseen'"):
            call(model, (x[100:], y[100:]), verified_from="unseen", moments=moments, progress=False)
    with pytest.raises(UsageError, match="verified_from is 'unseen', but these samples were picked by low-loss"):
        verifix.collect_moments(model, trusted.source, verified_from="unseen", progress=False)


def test_what_nobody_knows_of_is_no_origin_of_moments(tmp_path):
    x, _ = small_data(20)
    moments = verifix.collect_moments(small_net(), (x, torch.arange(20) % 3), verified_from="training", progress=False)
    with pytest.raises(UsageError, match="the saved moments has verified_from 'elsewhere'; it must be one of 'unseen'"):
        replace(moments, verified_from="elsewhere")
    object.__setattr__(moments, "verified_from", "elsewhere")  # as a later version may write
    moments.save(tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match=r"m.safetensors has verified_from 'elsewhere'"):
        verifix.SavedMoments.load(tmp_path / "m.safetensors")


# Labels


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        ([-100, *range(11)] * 5, "sample 0 has label -100 (row 0 of "),
        ([*range(11), 12] * 5, "sample 11 has label 12 (row 11 of "),
        ([[i, i] for i in range(12)] * 5, "v.npz has labels [60, 2]; give one class index per input"),
        ([i + 0.5 for i in range(12)] * 5, "has labels of float64"),
    ],
)
def test_labels_that_are_no_classes_are_refused_by_row(world, tmp_path, capsys, labels, text):
    np.savez(tmp_path / "v.npz", x=pixels(np.arange(60) % CLASSES, 5), y=np.array(labels))
    assert correct(world, tmp_path, tmp_path / "v.npz") == 5
    assert text in capsys.readouterr().err
    if isinstance(labels[0], list):
        return  # a table has one value per cell
    rows = "\n".join(f"numbers/{i % 12}/{i}.png,{label}" for i, label in enumerate(labels))
    (world / "v.csv").write_text(f"file_name,label\n{rows}\n")
    assert correct(world, tmp_path, world / "v.csv") == 5
    wrong = next((i for i, label in enumerate(labels) if not (isinstance(label, int) and 0 <= label < 12)), 0)
    assert f"line {wrong + 2} of {world / 'v.csv'}" in capsys.readouterr().err


# Fewer samples


def test_a_limit_keeps_the_share_of_each_class():
    labels = np.repeat([0, 1, 2, 3], [600, 300, 99, 1])
    for count in (1, 10, 100, 999):
        chosen = by_class(labels, count, 0)
        assert len(set(chosen)) == count
        assert chosen == sorted(chosen)
        exact = count * np.array([600, 300, 99, 1]) / 1000
        assert (np.abs(np.bincount(labels[chosen], minlength=4) - exact) < 1).all()
    assert by_class(labels, 100, 0) == by_class(labels, 100, 0) != by_class(labels, 100, 1)


def test_limits_on_the_command_line(world, tmp_path, capsys):
    score = ["score", world / "build.safetensors", "--model", f"py:{world / 'net.py'}:build", *NORMALISE, "--json"]
    figures = set()
    for seed in (0, 0, 1):
        words = [*score, "--data", world / "numbers", "--limit", "60", "--seed", seed, "--no-progress"]
        assert main([str(w) for w in words]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["samples"] == 60
        figures.add(result["cross_entropy"])
    assert len(figures) == 2
    assert correct(world, tmp_path, world / "numbers", "--limit", "96", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["provenance"]["samples"] == 96
    assert result["provenance"]["classes_without_samples"] == []
    assert correct(world, tmp_path, world / "numbers", "--limit", "0") == 2
    assert "limit is 0" in capsys.readouterr().err
    source = open_data(world / "numbers", DataOptions())
    assert limited(source, 1000, 0) is limited(source, None, 0) is source
    with pytest.raises(UsageError, match="--limit needs data with known labels"):
        limited(replace(source, dataset=TensorDataset(torch.zeros(3, 1))), 2, 0)


# Folders as users have them


def names_in(root: Path, **options) -> list[str]:
    data = open_data(root, DataOptions(**options)).dataset
    return [str(Path(data.place(i)).relative_to(root)) for i in range(len(data))]


def test_what_lies_about_in_folders_is_no_sample(tmp_path, capsys):
    for name in (
        "0/a.png",
        "1/b.png",
        ".ipynb_checkpoints/a.png",
        "0/.ipynb_checkpoints/a-checkpoint.png",
        "1/._b.png",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(tiny.png("red"))
    (tmp_path / "__MACOSX" / "0").mkdir(parents=True)
    (tmp_path / "__MACOSX" / "0" / "a.png").write_bytes(b"")
    (tmp_path / "0" / "notes.txt").write_text("x")
    os.mkfifo(tmp_path / "0" / "pipe.png")
    (tmp_path / "0" / "self.png").symlink_to(tmp_path / "0" / "self.png")
    (tmp_path / "1" / "up").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "1" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "1" / "linked.png").symlink_to(tmp_path / "0" / "a.png")
    (tmp_path / "2").mkdir()
    assert names_in(tmp_path) == ["0/a.png", "1/b.png", "1/linked.png"]
    assert "ignored the folders without images: 2" in capsys.readouterr().err
    (tmp_path / "3").symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(DataError, match=r"3 is a link that leads back to .*; remove the link"):
        names_in(tmp_path)
    (tmp_path / "3").unlink()
    (tmp_path / "4").symlink_to(tmp_path / "4")
    assert len(names_in(tmp_path)) == 3


def test_names_in_two_forms_of_unicode_are_one_class(tmp_path):
    for name in ("caf\u00e9", "cafe\u0301", "tea"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(tiny.png("red"))
    labels = open_data(tmp_path, DataOptions(classes="tea,caf\u00e9")).dataset.labels
    assert sorted(labels) == [0, 1, 1]


def test_names_that_are_no_utf8_are_read_and_named_in_errors(world, tmp_path):
    odd = os.fsencode(tmp_path) + b"/v/\xff"
    Path(os.fsdecode(odd)).mkdir(parents=True)
    (tmp_path / "v" / "1").mkdir()
    (tmp_path / "v" / "1" / "a.png").write_bytes(tiny.png("red"))
    Path(os.fsdecode(odd + b"/b\xfe.png")).write_bytes(tiny.png("blue"))
    command = [Path(sys.executable).with_name("verifix"), "score", world / "build.safetensors"]
    command += ["--model", f"py:{world / 'net.py'}:build", "--data", tmp_path / "v", "--classes"]
    result = subprocess.run([*command, ",".join(map(str, range(12)))], capture_output=True, check=False, timeout=120)
    assert result.returncode == 5
    assert b"which is not among the model's classes" in result.stderr
    assert b"Traceback" not in result.stderr
    Path(os.fsdecode(odd)).rename(tmp_path / "v" / "0")
    data = open_data(tmp_path / "v", DataOptions()).dataset
    assert [y for _, y in data] == [0, 1]
    (tmp_path / "v" / "0" / os.fsdecode(b"\xfd.png")).write_bytes(b"")
    result = subprocess.run([*command[:-1]], capture_output=True, check=False, timeout=120)
    assert result.returncode == 5
    assert result.stderr.splitlines()[-1].endswith(b".png is empty; replace it or leave it out")


def one(tmp_path: Path, name: str = "a.png") -> torch.Tensor:
    return open_data(tmp_path, DataOptions()).dataset[0][0]


def test_alpha_depth_and_rotation(tmp_path):
    (tmp_path / "0").mkdir()
    file = tmp_path / "0" / "a.png"
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    expected = torch.from_numpy(rgb).permute(2, 0, 1) / 255
    Image.fromarray(np.dstack([rgb, np.full((4, 6), 90, np.uint8)])).save(file)
    assert torch.equal(one(tmp_path), expected)  # alpha is left out, not blended
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rgb).save(file, exif=exif)
    assert torch.equal(one(tmp_path), expected)  # as timm and torchvision read it
    data = open_data(tmp_path, DataOptions()).dataset
    plain = data.fingerprint(0)
    Image.fromarray(np.rot90(rgb, 3)).save(file)
    assert data.fingerprint(0) == plain  # and yet it is the same picture
    Image.fromarray(rgb[:, :, 0].astype(np.uint16) * 257).save(file)
    assert torch.equal(one(tmp_path)[0], expected[0])


def test_images_that_would_fill_the_memory_or_are_broken_are_refused(tmp_path, monkeypatch):
    (tmp_path / "0").mkdir()
    file = tmp_path / "0" / "a.png"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side, match in ((40, "a.png has more than 1000 pixels"), (60, "a.png has more than 1000 pixels")):
        Image.new("RGB", (side, side)).save(file)
        with pytest.raises(DataError, match=match):
            one(tmp_path)
    file.write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.png is empty; replace it"):
        one(tmp_path)
    file.write_bytes(tiny.png("red")[:100])
    with pytest.raises(DataError, match=r"a\.png is not a readable image"):
        one(tmp_path)


def test_a_loader_of_the_users_own_is_read_as_before(world):
    with np.load(world / "verified.npz") as data:
        x, y = inputs_of(data["x"]), torch.from_numpy(data["y"])
    loader = DataLoader(TensorDataset(x, y), batch_size=50, shuffle=True)
    samples = read_samples(loader)
    assert (samples.prints, samples.where(3), samples.place(3)) == ((), "", "sample 3")
    assert read_samples(samples, 7).batch_size == 7
    assert read_samples(samples).labels is samples.labels


def test_the_figures_of_the_page_are_those_measured():
    root = Path(__file__).resolve().parents[2]
    found = json.loads((root / "benchmarks" / "results" / "label_guards.json").read_text())
    page = " ".join((root / "docs" / "data.md").read_text(encoding="utf-8").split())
    right = found["right_labels"]
    assert (right["runs"], right["stopped"], right["remarks"]) == (400, 0, 0)
    assert "Of 400 runs with correct labels, it stopped 0, and noted unusual inputs in 0." in page
    for fault, by_size in found["faults"].items():
        cells = " | ".join(f"{each['stopped']:.0f}%" for each in by_size.values())
        assert f"| {fault} | {cells} |" in page
