"""A text classifier and a vision transformer that memorised wrong labels, corrected from a few hundred samples.

Run from the repository's root: ``python -m benchmarks.texts_and_vit``. Writes JSON to benchmarks/results.

Texts are the docstrings in the source of installed packages, the label is the package, without its name; the model is a
small BERT. Pictures are scikit-learn's handwritten digits; the model is torchvision's VisionTransformer, small. 30% of
the training labels are wrong. Nothing is chosen on the unseen samples that measure the gain.
"""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import re
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.coverage_models import declare_missing_operators
from benchmarks.environment import environment
from verifix import correct
from verifix.cli.demo import digits
from verifix.cli.demo.training import wrong_labels

OUT = Path("benchmarks/results/texts_and_vit.json")
PACKAGES = ("numpy", "sklearn", "matplotlib", "torch")
PER_PACKAGE, TRAINING, VERIFIED, WORDS, LONGEST = 900, 2400, 300, 2000, 30
WRONG = 0.3
RECIPES = ("verifix", "auto")
Inputs = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Task:
    """Samples in three parts, and a network for them.

    Attributes
    ----------
    inputs
        A tensor ``[n, …]``, or the named tensors of a text model.
    labels
        True labels, int64 ``[n]``.
    training, verified, unseen
        Indices of the three parts.
    build
        Makes an untrained network.
    classes, epochs, rate, batch
        Number of classes; how it is trained.
    """

    inputs: Inputs
    labels: Tensor
    training: Tensor
    verified: Tensor
    unseen: Tensor
    build: Callable[[], nn.Module]
    classes: int
    epochs: int
    rate: float
    batch: int = 32


def docstrings(package: str) -> Iterator[str]:
    """Yield the docstrings of a package's source files, in the order of their paths, without running any of them."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    for path in sorted(Path(spec.origin).parent.rglob("*.py")):
        with warnings.catch_warnings(), suppress(SyntaxError):  # some files need a newer Python
            warnings.simplefilter("ignore")  # some files have invalid escapes
            yield from _docstrings_in(path)


def _docstrings_in(path: Path) -> Iterator[str]:
    if "test" not in str(path):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                text = ast.get_docstring(node)
                if text and len(text) > 150:
                    yield text


def words_of(text: str) -> list[str]:
    """Return the words of a text, lower case, without names of packages, which would tell the label."""
    hidden = {*PACKAGES, "np", "plt", "mpl", "pytorch", "scikit", "learn", "aten", "axes"}
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word not in hidden][:LONGEST]


def texts(seed: int) -> Task:
    """Return the docstrings, encoded with a vocabulary of the training texts, and a small BERT."""
    generator = np.random.default_rng(seed)
    found: list[tuple[list[str], int]] = []
    for label, package in enumerate(PACKAGES):
        own = list(dict.fromkeys(itertools.islice(docstrings(package), 4 * PER_PACKAGE // 3)))
        chosen = generator.choice(len(own), PER_PACKAGE, replace=False)
        found += [(words_of(own[i]), label) for i in chosen]
    order = torch.from_numpy(generator.permutation(len(found)))
    parts = order.split([TRAINING, VERIFIED, len(found) - TRAINING - VERIFIED])
    inputs = encoded([words for words, _ in found], parts[0].tolist())
    labels = torch.tensor([y for _, y in found])
    return Task(inputs, labels, parts[0], parts[1], parts[2], bert, len(PACKAGES), epochs=10, rate=1e-3)


def encoded(texts: Sequence[Sequence[str]], training: Sequence[int]) -> dict[str, Tensor]:
    """Return ids and mask: 0 is padding, 1 an unknown word, 2 the beginning."""
    counts = Counter(word for i in training for word in texts[i])
    number = {word: 3 + i for i, (word, _) in enumerate(counts.most_common(WORDS - 3))}
    ids = torch.zeros(len(texts), LONGEST + 1, dtype=torch.long)
    for row, words in zip(ids, texts, strict=True):
        row[: len(words) + 1] = torch.tensor([2, *(number.get(word, 1) for word in words)])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def bert() -> nn.Module:
    """Return a small BERT for sequence classification."""
    from transformers import BertConfig, BertForSequenceClassification

    sizes: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": 1, "intermediate_size": 512}
    dropout: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    more: dict[str, Any] = {"vocab_size": WORDS, "num_labels": len(PACKAGES), "num_attention_heads": 4}
    config = BertConfig(**sizes, **dropout, **more)
    return BertForSequenceClassification(config)


def pictures(seed: int) -> Task:
    """Return the handwritten digits as pictures of 8 × 8, and a small vision transformer."""
    data = digits.load(seed)
    inputs = data.inputs.reshape(-1, 1, 8, 8).repeat(1, 3, 1, 1)
    return Task(inputs, data.labels, data.training, data.verified, data.unseen, vit, 10, epochs=40, rate=1e-3)


def vit() -> nn.Module:
    """Return torchvision's vision transformer, small, for patches of 4 × 4."""
    from torchvision.models import VisionTransformer

    model: nn.Module = VisionTransformer(8, 4, num_layers=1, num_heads=4, hidden_dim=128, mlp_dim=512, num_classes=10)
    return model


def part(inputs: Inputs, index: Tensor) -> Inputs:
    """Return some of the samples."""
    return {k: x[index] for k, x in inputs.items()} if isinstance(inputs, dict) else inputs[index]


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Run a model on a batch."""
    output = model(**inputs) if isinstance(inputs, dict) else model(inputs)
    logits: Tensor = output if isinstance(output, Tensor) else output.logits
    return logits


def trained(task: Task, seed: int) -> nn.Module:
    """Train a network on wrong labels until it knows most of them by heart."""
    noisy = wrong_labels(task.labels[task.training], WRONG, task.classes, seed)
    model, inputs = built(task.build, seed), part(task.inputs, task.training)
    return fit(model, inputs, noisy, epochs=task.epochs, rate=task.rate, batch=task.batch, seed=seed)


def built(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Make a network whose first weights are drawn with a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def fit(
    model: nn.Module, inputs: Inputs, labels: Tensor, *, epochs: int, rate: float, batch: int, seed: int
) -> nn.Module:
    """Train with AdamW on a one-cycle schedule, and return the model in eval mode.

    Parameters
    ----------
    model
        The network.
    inputs, labels
        Training samples.
    epochs, rate, batch
        Passes, peak learning rate, batch size.
    seed
        Seed of the order of samples.

    Returns
    -------
    nn.Module
        The same network.
    """
    steps = epochs * (len(labels) // batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(labels), generator=generator)
        for index in order.split(batch)[: len(labels) // batch]:
            optimizer.zero_grad()
            F.cross_entropy(logits_of(model, part(inputs, index)), labels[index]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.no_grad()
def accuracy(task: Task, model: nn.Module, index: Tensor) -> float:
    """Return the accuracy on some samples, in percent."""
    right = [logits_of(model, part(task.inputs, i)).argmax(1) == task.labels[i] for i in index.split(200)]
    return 100 * float(torch.cat(right).double().mean())


def measure(name: str, seed: int, recipes: Sequence[str] = RECIPES) -> dict[str, Any]:
    """Train one network, correct it by each recipe, and score it.

    Parameters
    ----------
    name
        "texts" or "pictures".
    seed
        Of samples, labels and weights.
    recipes
        How to correct.

    Returns
    -------
    dict
        Accuracies in percent on the unseen samples, and by recipe the strength that each stage chose.
    """
    task = {"texts": texts, "pictures": pictures}[name](seed)
    model = trained(task, seed)
    verified = part(task.inputs, task.verified), task.labels[task.verified]
    found = {recipe: correct(model, verified, recipe=recipe, seed=seed, progress=False) for recipe in recipes}
    return {
        "seed": seed,
        "memorised": accuracy_on_noisy(task, model, seed),
        "before": accuracy(task, model, task.unseen),
        **{recipe: accuracy(task, correction.model, task.unseen) for recipe, correction in found.items()},
        "chosen": {recipe: dict(correction.strengths) for recipe, correction in found.items()},
    }


def accuracy_on_noisy(task: Task, model: nn.Module, seed: int) -> float:
    """Return how many of its training labels, wrong ones included, the network gives back, in percent."""
    noisy = task.labels.clone()
    noisy[task.training] = wrong_labels(task.labels[task.training], WRONG, task.classes, seed)
    with torch.no_grad():
        right = [logits_of(model, part(task.inputs, i)).argmax(1) == noisy[i] for i in task.training.split(200)]
    return 100 * float(torch.cat(right).double().mean())


def main(seeds: int = 5) -> None:
    """Measure both tasks and write what came out."""
    operators = declare_missing_operators()
    rows = {name: [measure(name, seed) for seed in range(seeds)] for name in ("texts", "pictures")}
    means = {
        name: {key: sum(row[key] for row in found) / len(found) for key in ("memorised", "before", *RECIPES)}
        for name, found in rows.items()
    }
    sizes = {"texts": [TRAINING, VERIFIED, len(PACKAGES) * PER_PACKAGE - TRAINING - VERIFIED]}
    record = {"mean": means, "runs": rows, "training_verified_unseen": sizes, "wrong": WRONG, **environment()}
    del operators
    OUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(means, indent=2) + "\n")


if __name__ == "__main__":
    main()
