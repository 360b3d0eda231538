"""How often wrong preprocessing is stopped, and how often the right one is, on networks that learned wrong labels.

Run from the repository's root: ``python -m benchmarks.preprocessing``. Writes JSON to benchmarks/results. With the real
network beside the checkout (../shared), it is measured as well.

The handwritten digits of scikit-learn are drawn at 32 pixels in colours that go with their class. Networks learn 800 of
them, a share with wrong labels. 497 others are what their user measures an accuracy on, with the preprocessing of the
training; the verified samples are drawn from the last 500.

1. A grid: three networks (convolutions with BatchNorm, without any norm, and a small ResNet of timm), each shown its
   verified samples in every wrong preprocessing, in three sizes of the verified set and several draws. A cell says how
   often `verifix correct` stops, without and with the expected accuracy, and how many checkpoints it writes.
2. Right preprocessing on twenty networks of four architectures, with up to 40% wrong labels: it should never stop.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import json
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.coverage_models import declare_missing_operators
from benchmarks.environment import environment
from verifix.capture.input_statistics import watching_first_norm
from verifix.errors import DataError
from verifix.evaluation.accuracy import DOUBT, accuracy_of, chance_of, remark_on_expected
from verifix.evaluation.look_over import look_over
from verifix.io.data.open import open_data
from verifix.io.data.preprocessing import prepare
from verifix.io.options import DataOptions
from verifix.losses import predicted_classes
from verifix.model.answers import predicted
from verifix.model.samples import Samples, read_samples
from verifix.options import CorrectArguments

OUT = Path("benchmarks/results/preprocessing.json")
SHARED = Path(__file__).resolve().parents[2] / "shared"
SIDE, TRAINING, MEASURED = 32, 800, 497
SIZES, DRAWS = (50, 100, 400), 6
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)
RGB, BGR, GREY = "rgb", "bgr", "grey"

Numbers = np.ndarray[Any, Any]
Flags = Mapping[str, Any]


def pictures(seed: int = 0) -> tuple[Numbers, Numbers]:
    """Draw the digits at 32 pixels, in random order: 8-bit RGB ``[1797, 32, 32, 3]`` and labels.

    The hue of a digit goes with its class, with so much scatter that shape and colour are both needed.
    """
    from sklearn.datasets import load_digits

    data, generator = load_digits(), np.random.default_rng(seed)
    order = generator.permutation(len(data.target))
    labels = data.target[order]
    drawn = []
    for image, label in zip(data.images[order], labels, strict=True):
        large = Image.fromarray((image * 15.9).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        stroke = np.asarray(large, dtype=float)[:, :, None] / 255
        ink = np.array(colorsys.hsv_to_rgb((label / 10 + generator.normal(0, 0.12)) % 1, 0.8, 1.0))
        ground = generator.uniform(0, 0.35, 3)
        noise = generator.normal(0, 0.05, (SIDE, SIDE, 3))
        drawn.append((255 * (ground + stroke * (ink - ground) + noise)).clip(0, 255).astype(np.uint8))
    return np.stack(drawn), labels


def conv_bn() -> nn.Module:
    """Return convolutions with BatchNorm."""
    return _convolutions(norm=True)


def conv_plain() -> nn.Module:
    """Return convolutions without any norm."""
    return _convolutions(norm=False)


def _convolutions(*, norm: bool) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in ((3, 24), (24, 48), (48, 96)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), *([nn.BatchNorm2d(after)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * 96, 10))


def perceptron() -> nn.Module:
    """Return fully connected layers, the first of which is followed by BatchNorm."""
    hidden = [nn.Linear(3 * SIDE**2, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(64, 10))


def timm_resnet() -> nn.Module:
    """Return the smallest ResNet of timm, whose data config says 160 pixels."""
    import timm

    model: nn.Module = timm.create_model("test_resnet", pretrained=False, num_classes=10)
    return model


BUILDERS = {"conv_bn": conv_bn, "conv_plain": conv_plain, "timm_resnet": timm_resnet, "perceptron": perceptron}
OF_TIMM = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
NORMAL = {"timm_resnet": OF_TIMM}
"""Mean and std of the training, where they are not those of CIFAR."""


@dataclass(frozen=True)
class Case:
    """A network, its verified samples, and what its user knows.

    Attributes
    ----------
    name
        How `--model` names it.
    model
        The network.
    right
        The flags of its preprocessing in training.
    folders
        Where the verified images lie, by the order of their colours.
    measured
        How many of how many samples its user finds right.
    about
        What it is.
    """

    name: str
    model: nn.Module
    right: Flags
    folders: Mapping[str, Path]
    measured: tuple[int, int]
    about: Mapping[str, Any]


def train(kind: str, seed: int, noise: float, root: Path, epochs: int = 14) -> Case:
    """Train one network on digits with wrong labels, and write its weights and its verified images to a folder."""
    images, labels = pictures(seed)
    generator = np.random.default_rng([seed, 1])
    wrong = generator.random(TRAINING) < noise
    given = np.where(wrong, (labels[:TRAINING] + generator.integers(1, 10, TRAINING)) % 10, labels[:TRAINING])
    mean, std = NORMAL.get(kind, CIFAR)
    x, y = _inputs(images, mean, std), torch.from_numpy(given)
    torch.manual_seed(seed)
    model = BUILDERS[kind]().train()
    steps = epochs * (TRAINING // 40)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(TRAINING).split(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    model.eval().requires_grad_(False)
    mine = slice(TRAINING, TRAINING + MEASURED)
    right = int((model(x[mine]).argmax(1) == torch.from_numpy(labels[mine])).sum())
    rest = slice(TRAINING + MEASURED, None)
    folders = {order: written(images[rest], labels[rest], root / order, order) for order in (RGB, BGR, GREY)}
    torch.save(model.state_dict(), root / "net.pt")
    name = "timm:test_resnet" if kind == "timm_resnet" else f"py:{Path(__file__)}:{kind}"
    flags = {"size": SIDE, "mean": _text(mean), "std": _text(std)}
    if kind == "timm_resnet":
        flags["crop_pct"] = 1.0
    about = {"network": kind, "seed": seed, "noise": noise, "right": 100 * right / MEASURED}
    return Case(name, model, flags, folders, (right, MEASURED), about)


def written(images: Numbers, labels: Numbers, folder: Path, order: str = RGB) -> Path:
    """Write images as PNG, in one folder for each class."""
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / str(int(label))
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(image[:, :, ::-1] if order == BGR else image)
        (picture.convert("L") if order == GREY else picture).save(place / f"{i:04d}.png")
    return folder


def _inputs(images: Numbers, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def _text(numbers: Iterable[float]) -> str:
    return ",".join(f"{number:.10g}" for number in numbers)


def cells(right: Flags) -> dict[str, tuple[Flags, str]]:
    """Return every preprocessing of the grid: the flags, and the order of colours in the files."""
    mean, std = (np.array([float(number) for number in right[name].split(",")]) for name in ("mean", "std"))

    def normal(m: Any, s: Any) -> dict[str, str]:
        return {"mean": _text(np.broadcast_to(m, 3)), "std": _text(np.broadcast_to(s, 3))}

    half, large = SIDE * 3 // 4, {"interpolation": "bicubic"}
    return {
        "right": (right, RGB),
        "size 24": ({**right, "size": half}, RGB),
        "size 64": ({**right, "size": 2 * SIDE}, RGB),
        "size 160": ({**right, "size": 160, **large}, RGB),
        "centre crop 0.875": ({**right, "crop_pct": 0.875, "crop_mode": "center"}, RGB),
        "centre crop 0.6": ({**right, "crop_pct": 0.6, "crop_mode": "center"}, RGB),
        "mean and std of ImageNet": ({**right, **normal(*IMAGENET)}, RGB),
        "mean and std off": ({**right, **normal(0.1, 0.6)}, RGB),
        "not normalised": ({**right, **normal(0, 1)}, RGB),
        "0 to 255, not normalised": ({**right, **normal(0, 1 / 255)}, RGB),
        "0 to 255, normalised": ({**right, **normal(mean / 255, std / 255)}, RGB),
        "normalised twice": ({**right, **normal(mean + mean * std, std**2)}, RGB),
        "red and blue exchanged": (right, BGR),
        "grey": (right, GREY),
    }


def seen(case: Case, flags: Flags, order: str) -> Samples:
    """Return the verified samples in some preprocessing, as the command reads them."""
    options = DataOptions(**flags)
    with redirect_stderr(io.StringIO()):
        source = open_data(case.folders[order], options, prepare(case.model, case.name, options))
    return read_samples(source)


def stopped(case: Case, samples: Samples) -> tuple[bool, bool, bool]:
    """Tell whether samples are stopped without an expected accuracy, whether with one, and whether that is due."""
    right, of = case.measured
    with watching_first_norm(case.model) as seen:
        logits = predicted(case.model, samples)
    found = accuracy_of(predicted_classes(logits), samples.labels)
    beyond = bool(remark_on_expected(found, (right / of, of)))
    options = CorrectArguments(check_inputs=True, progress=False)
    try:
        look_over(logits, seen.remark(), case.model, torch.device("cpu"), samples, options)
    except DataError:
        return True, True, beyond
    return False, beyond, beyond


def drawn(count: int, size: int, seed: Sequence[int]) -> list[int]:
    """Draw a verified set."""
    return sorted(np.random.default_rng(seed).choice(count, min(size, count), replace=False).tolist())


def of_cell(case: Case, cell: str, draws: int = DRAWS, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
    """Measure one cell of the grid: percent stopped by size of the verified set."""
    samples = seen(case, *cells(case.right)[cell])
    found: dict[str, Any] = {}
    right = accuracy_of(predicted_classes(predicted(case.model, samples)), samples.labels)
    own = case.measured
    found["right"] = right.percent
    found["p"] = chance_of(right, own[0] / own[1], own[1])
    for size in sizes:
        rows = [stopped(case, samples.subset(drawn(len(samples), size, [draw, size]))) for draw in range(draws)]
        alone, expecting, beyond = (100 * sum(column) / draws for column in zip(*rows, strict=True))
        found[str(size)] = {"stopped": alone, "stopped_with_expected": expecting, "beyond": beyond}
    return found


def corrected(case: Case, cell: str, root: Path, *more: str) -> tuple[int, bool]:
    """Run the command on all verified samples of a cell; return its exit code, and whether a checkpoint was written."""
    from verifix.cli.main import main

    flags, order = cells(case.right)[cell]
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    words += ["--num-classes", "10"] if case.name.startswith("timm:") else []
    out = root / "fixed.pt"
    out.unlink(missing_ok=True)
    argv = ["correct", "--model", case.name, "--checkpoint", root / "net.pt", "--verified", case.folders[order]]
    argv += ["--verified-from", "unseen", "--alpha", "1e4", "--proof", "none", "--no-progress"]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        code = main([str(word) for word in (*argv, "--out", out, *words, *more)])
    written_out = out.exists()
    for file in root.glob("fixed*"):
        file.unlink()
    return code, written_out


def expecting(case: Case) -> list[str]:
    """Return the flag with the accuracy that the network's user has measured."""
    return ["--expect-accuracy", "{}/{}".format(*case.measured)]


def grid(root: Path) -> dict[str, Any]:
    """Measure all cells of the three networks."""
    found: dict[str, Any] = {}
    for kind in ("conv_bn", "conv_plain", "timm_resnet"):
        folder = root / kind
        folder.mkdir()
        case = train(kind, 0, 0.3, folder)
        found[kind] = {"about": case.about, "cells": {}}
        for cell in cells(case.right):
            entry = of_cell(case, cell, 2 if "160" in cell else DRAWS)
            code, there = corrected(case, cell, folder, *expecting(case))
            entry["command_with_expected"] = {"code": code, "written": there}
            found[kind]["cells"][cell] = entry
            sys.stderr.write(f"{kind}, {cell}: {entry}\n")
    return found


def real(root: Path) -> dict[str, Any]:
    """Measure the real network beside the checkout: right on 7298 of 10,000 test images, and of one size."""
    import pyarrow.parquet

    from verifix.io.checkpoints.read import read_checkpoint
    from verifix.io.models import build_model

    name = f"py:{SHARED / 'networks/vgg11_bn_cifar.py'}:build"
    model = build_model(name)
    read_checkpoint(SHARED / "networks/vgg11_bn_cifar10_sym25.safetensors", "auto").load_into(model)
    rows = pyarrow.parquet.read_table(SHARED / "data/cifar10_verified.parquet").to_pydict()
    images = np.stack([np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in rows["image"]])
    folders = {order: written(images, np.array(rows["label"]), root / order, order) for order in (RGB, BGR, GREY)}
    right = {"size": SIDE, "mean": _text(CIFAR[0]), "std": _text(CIFAR[1])}
    about = {"network": "VGG11-BN", "noise": 0.25, "right": 72.98}
    case = Case(name, model.eval(), right, folders, (7298, 10_000), about)
    chosen = [cell for cell in cells(right) if not cell.startswith("size")]
    return {"about": about, "cells": {cell: of_cell(case, cell, 2) for cell in chosen}}


def right_ones(root: Path, networks: int = 20) -> list[dict[str, Any]]:
    """Show twenty networks their samples in the right preprocessing, in verified sets of several sizes."""
    rows = []
    for number in range(networks):
        kind, noise = list(BUILDERS)[number % 4], (0.0, 0.1, 0.2, 0.3, 0.4)[number % 5]
        folder = root / f"right{number}"
        folder.mkdir()
        case = train(kind, 100 + number, noise, folder)
        samples = seen(case, case.right, RGB)
        for size in (50, 100, 200, 500):
            alone, with_expected, _ = stopped(case, samples.subset(drawn(len(samples), size, [number, size])))
            rows.append(dict(case.about) | {"samples": size, "stopped": alone, "stopped_with_expected": with_expected})
        sys.stderr.write(f"{rows[-1]}\n")
    return rows


def table(record: Mapping[str, Any], what: str) -> str:
    """Return the rows of docs/preprocessing.md: a preprocessing, and for each network one entry.

    Parameters
    ----------
    record
        What was measured.
    what
        "right" for the accuracy, "stopped" and "stopped_with_expected" for percent stopped by size of the verified set.

    Returns
    -------
    str
        Lines of Markdown, without a head.
    """
    networks = [record["grid"].get(name) for name in ("conv_bn", "conv_plain", "timm_resnet", "vgg11_bn")]

    def entry(found: Mapping[str, Any] | None) -> str:
        if found is None:
            return "–"
        if what == "right":
            return f"{found['right']:.1f}%"
        return " / ".join(f"{found[str(size)][what]:.0f}" if str(size) in found else "–" for size in SIZES)

    rows = [
        f"| {cell} | " + " | ".join(entry(network and network["cells"].get(cell)) for network in networks) + " |"
        for cell in record["grid"]["conv_bn"]["cells"]
    ]
    return "\n".join(rows)


def main() -> None:
    """Measure both and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-real", action="store_true", help="leave the real network out")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    library = declare_missing_operators()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        record: dict[str, Any] = {"grid": grid(root), "right": right_ones(root)}
        if not arguments.no_real and (SHARED / "networks").is_dir():
            record["grid"]["vgg11_bn"] = real(root / "real")
    del library
    entries = [entry for network in record["grid"].values() for entry in network["cells"].values()]
    counted = [
        e["command_with_expected"]["written"] for e in entries if "command_with_expected" in e and e["p"] < DOUBT
    ]
    record["written_beyond_sampling_error"] = sum(counted)
    record["commands_beyond_sampling_error"] = len(counted)
    record["right_runs"] = len(record["right"])
    record["right_stopped"] = sum(row["stopped"] for row in record["right"])
    record["right_stopped_with_expected"] = sum(row["stopped_with_expected"] for row in record["right"])
    OUT.write_text(json.dumps(record | environment(), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({key: value for key, value in record.items() if key not in ("grid", "right")}) + "\n")


if __name__ == "__main__":
    main()
