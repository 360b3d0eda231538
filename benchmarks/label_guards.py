"""How often labels in another order are stopped, and how often right ones are, on networks that learned wrong labels.

Run from the repository's root: ``python -m benchmarks.label_guards``. Writes JSON to benchmarks/results.

Networks with BatchNorm are trained on the handwritten digits (10 classes) and on patterns of 2 to 12 classes, with 30%
to 45% of their labels wrong: evenly, all as the next class, exchanged in pairs, or in one direction within pairs. Each
is then shown verified samples that it has not seen, in five sizes, of equal and of unequal classes.

1. Labels as they are: 400 runs, none of which should be stopped, nor their inputs be remarked on.
2. Networks of 10 and 12 classes that are right on 60% or more: the folder order of names as text, in both directions;
   a class folder that is missing; two classes exchanged.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from verifix.capture.input_statistics import watching_first_norm
from verifix.cli.demo.training import mlp, percent_right, train
from verifix.evaluation.label_order import find_remapping
from verifix.losses import predicted_classes

OUT = Path("benchmarks/results/label_guards.json")
SIZES = (50, 100, 200, 400, 700)
TRAINING = 1000
NOISES = (("even", 0.3), ("even", 0.45), ("next", 0.3), ("next", 0.4), ("pairs", 0.4), ("one way", 0.4), ("even", 0.4))
CLASSES = (12, 10, 12, 8, 12, 5, 12, 3, 12, 2)
"""Of the patterns, network by network; and every fourth network learns the digits."""
NETWORKS = 80
DRAWS = 4
"""Verified sets of each size and network that a fault is tried on."""
DECENT = 60.0
"""Percent right from which on a fault must be found."""

Numbers = np.ndarray[Any, Any]


def patterns(classes: int, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return `count` samples: one random pattern of 64 numbers per class, with twice as much noise."""
    centres = np.random.default_rng([seed, 0]).normal(size=(classes, 64))
    generator = np.random.default_rng([seed, 1])
    labels = generator.permutation(np.arange(count) % classes)
    inputs = centres[labels] + generator.normal(scale=2.0, size=(count, 64))
    return torch.from_numpy(inputs).float(), torch.from_numpy(labels)


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Return the digits of scikit-learn in random order."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(seed).permutation(len(data.target))
    return torch.from_numpy(data.data[order]).float() / 16, torch.from_numpy(data.target[order]).long()


def wrong(labels: Tensor, classes: int, kind: str, rate: float, seed: int) -> Tensor:
    """Replace a share of labels."""
    generator = np.random.default_rng(seed)
    old = labels.numpy()
    chosen = generator.random(len(old)) < rate
    partner = np.where(old % 2 == 0, np.minimum(old + 1, classes - 1), old - 1)
    new = {
        "even": (old + generator.integers(1, classes, len(old))) % classes,
        "next": (old + 1) % classes,
        "pairs": partner,
        "one way": np.where(old % 2 == 0, partner, old),
    }[kind]
    return torch.from_numpy(np.where(chosen, new, old))


def network(number: int) -> tuple[nn.Module, Tensor, Tensor, dict[str, Any]]:
    """Train one network on wrong labels; return it with inputs and labels that it has not seen."""
    (kind, rate), of_digits = NOISES[number % len(NOISES)], number % 4 == 3
    classes = 10 if of_digits else CLASSES[number % len(CLASSES)]
    rate = min(rate, 0.4) if classes == 2 else rate
    x, y = digits(number) if of_digits else patterns(classes, TRAINING + 2000, number)
    given = wrong(y[:TRAINING], classes, kind, rate, number)
    model = mlp((64, 128, 128, classes), number, norm=True)
    train(model, x[:TRAINING], given, epochs=40, rate=0.01, batch=50, seed=number)
    unseen = x[TRAINING:], y[TRAINING:]
    about = {"data": "digits" if of_digits else "patterns", "classes": classes, "noise": kind, "rate": rate}
    return model, *unseen, about | {"right": percent_right(model, *unseen)}


def drawn(labels: Numbers, classes: int, count: int, seed: list[int], *, equal: bool) -> Numbers:
    """Choose verified samples: classes in equal or in unequal shares."""
    generator = np.random.default_rng(seed)
    share = np.ones(classes) if equal else generator.dirichlet(np.full(classes, 3.0))
    weight = share[labels] / np.bincount(labels, minlength=classes)[labels]
    return generator.choice(len(labels), min(count, len(labels)), replace=False, p=weight / weight.sum())


def faults(labels: Numbers, classes: int, generator: np.random.Generator) -> Iterator[tuple[str, Numbers, Numbers]]:
    """Yield each fault: its name, which samples there are, and their labels."""
    every = np.ones(len(labels), dtype=bool)
    if classes > 10:
        as_text = np.array(sorted(range(classes), key=str))
        yield "labels in the order of names as text", every, np.argsort(as_text)[labels]
        yield "outputs in the order of names as text", every, as_text[labels]
    missing = int(generator.integers(classes - 1))  # without the last class, all labels are right
    yield "class folder missing", labels != missing, np.where(labels > missing, labels - 1, labels)
    a, b = generator.choice(classes, 2, replace=False)
    yield "two classes exchanged", every, np.select([labels == a, labels == b], [b, a], labels)


def of_network(number: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Show one network right labels, and wrong ones if it is decent; return what was found of each."""
    model, x, y, about = network(number)
    model.requires_grad_(False)
    predicted, labels, classes = predicted_classes(model(x)), y.numpy(), about["classes"]
    right, faulty = [], []
    for size in SIZES:
        chosen = drawn(labels, classes, size, [number, size], equal=number % 2 == 0)
        found = find_remapping(predicted[chosen], y[chosen], classes)
        with watching_first_norm(model) as seen:
            model(x[chosen])
        right.append(about | {"samples": len(chosen), "stopped": found is not None, "remark": bool(seen.remark())})
        for draw in range(DRAWS if classes >= 10 and about["right"] >= DECENT else 0):
            some = drawn(labels, classes, size, [number, size, draw], equal=draw % 2 == 0)
            generator = np.random.default_rng([number, size, draw, 1])
            for fault, there, given in faults(labels[some], classes, generator):
                sample, given_there = some[there], given[there]
                found = find_remapping(predicted[sample], torch.from_numpy(given_there), classes)
                moved = {int(a): int(b) for a, b in zip(given_there, labels[sample], strict=True) if a != b}
                entry = about | {"fault": fault, "samples": size, "stopped": found is not None}
                entry["moved"] = int((given_there != labels[sample]).sum())
                entry["named"] = found is not None and found.outputs == moved
                faulty.append(entry)
    return right, faulty


def rates(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return, per fault and size, how many were tried, and the percentages stopped and named exactly."""
    groups: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        groups[row["fault"]][str(row["samples"])].append(row)
    return {
        fault: {
            size: {
                "runs": len(some),
                "moved": sum(row["moved"] for row in some) / len(some),
                "stopped": 100 * sum(row["stopped"] for row in some) / len(some),
                "named": 100 * sum(row["named"] for row in some) / len(some),
            }
            for size, some in by_size.items()
        }
        for fault, by_size in groups.items()
    }


def by_moved(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the percentage stopped by how many samples have a label that is wrong."""
    table = {}
    for low, high in ((1, 10), (10, 20), (20, 30), (30, 40), (40, 60), (60, 100), (100, 10**9)):
        some = [row for row in rows if low <= row["moved"] < high]
        stopped = 100 * sum(row["stopped"] for row in some) / len(some) if some else None
        table[f"{low} to {high - 1}" if high < 10**9 else f"{low} or more"] = {"runs": len(some), "stopped": stopped}
    return table


def main() -> None:
    """Measure both and write what came out."""
    right: list[dict[str, Any]] = []
    faulty: list[dict[str, Any]] = []
    for number in range(NETWORKS):
        of_right, of_faulty = of_network(number)
        right, faulty = right + of_right, faulty + of_faulty
    scores = [row["right"] for row in right]
    record = {
        "right_labels": {
            "runs": len(right),
            "stopped": sum(row["stopped"] for row in right),
            "remarks": sum(row["remark"] for row in right),
            "networks": NETWORKS,
            "right_from": min(scores),
            "right_to": max(scores),
        },
        "faults": rates(faulty),
        "by_moved_samples": by_moved(faulty),
        "missed": [row for row in faulty if not row["stopped"] and row["samples"] >= 400],
        "networks": [row for row in right if row["samples"] == SIZES[0]],
    }
    OUT.write_text(json.dumps(record | environment(), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({key: record[key] for key in list(record)[:4]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
