"""The networks, the data and the reader that the tests of checkpoints share."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from verifix.storage.atomic import write_together

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=3):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.bn(self.conv(x)).relu().flatten(1))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 3)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.head(self.b(self.a(x.flatten(1)).relu()).relu())


class Logits(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x).logits


def build():
    return Net()


def seven():
    return Net(7)


def tied():
    return Tied()


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    sizes = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    return Logits(ViTForImageClassification(ViTConfig(**sizes, image_size=4, patch_size=2, num_labels=3)))
"""
NAMES: dict[str, Any] = {}
exec(compile(NET, "net.py", "exec"), NAMES)

ALPHA = 30
TORCH = (".pt", ".pth", ".tar", ".bin", ".ckpt")


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    labels = torch.arange(60) % 3
    return torch.randn(60, 3, 4, 4, generator=generator) + labels[:, None, None, None], labels


def write_world(folder: Path, checkpoint: str | None = None) -> None:
    """Write the networks and the verified samples, and the weights of a network under a name."""
    x, y = samples()
    if checkpoint is not None:
        save_file(some_net().state_dict(), folder / checkpoint)
    (folder / "net.py").write_text(NET)
    np.savez(folder / "v.npz", x=x.numpy(), y=y.numpy())


def arguments(checkpoint: object, out: object, *more: str, factory: str = "build") -> list[str]:
    words = ["correct", "--model", f"py:net.py:{factory}", "--checkpoint", checkpoint, "--verified", "v.npz"]
    words += [
        "--verified-from",
        "unseen",
        "--recipe",
        "verifix",
        "--proof",
        "none",
        "--alpha",
        ALPHA,
        "--out",
        out,
        "--no-progress",
        "--no-check-inputs",  # the networks are not trained
    ]
    return [*map(str, words), *more]


def some_net(name: str = "Net", seed: int = 1) -> torch.nn.Module:
    """A network with weights and statistics that no other seed has."""
    torch.manual_seed(seed)
    model = NAMES[name]()
    for _ in range(3):
        model(samples()[0] * seed)
    return model.eval()


def flat(path: Path) -> dict[tuple[Any, ...], Any]:
    """Everything in a file or folder by its place, read by the libraries themselves."""
    if path.is_dir():
        files = (file for file in sorted(path.rglob("*")) if file.is_file())
        return {(str(f.relative_to(path)), *rest): v for f in files for (_, *rest), v in flat(f).items()}
    if path.suffix == ".safetensors":
        return {("", key): value for key, value in load_file(path).items()}
    if path.suffix in TORCH:
        return dict(leaves(torch.load(path, weights_only=False), ("",)))
    return {("",): path.read_bytes()}


def leaves(content: Any, place: tuple[Any, ...]):
    yield (*place, type), type(content)
    if type(content).__name__ == "OrderedDict":
        yield (*place, vars), str(vars(content))
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if isinstance(content, Mapping):
        yield (*place, list), list(content)
        for key, value in content.items():
            yield from leaves(value, (*place, key))
    elif isinstance(content, (list, tuple)):
        for i, value in enumerate(content):
            yield from leaves(value, (*place, i))
    else:
        yield place, content


def same(a: Any, b: Any) -> bool:
    """Whether two leaves are alike to the bit."""
    if not isinstance(a, torch.Tensor):
        return repr(a) == repr(b)
    if (a.dtype, a.shape, a.requires_grad) != (b.dtype, b.shape, b.requires_grad):
        return False
    return a.detach().contiguous().view(-1).view(torch.uint8).equal(b.detach().contiguous().view(-1).view(torch.uint8))


def ties(content: Mapping[tuple[Any, ...], Any]) -> set[frozenset[tuple[Any, ...]]]:
    """The places that share memory."""
    groups: dict[int, set[tuple[Any, ...]]] = {}
    for place, value in content.items():
        if isinstance(value, torch.Tensor):
            groups.setdefault(value.data_ptr(), set()).add(place)
    return {frozenset(group) for group in groups.values() if len(group) > 1}


def write_with(checkpoint, out, update, provenance=(), *, force: bool = False) -> None:
    """Write a copy of a checkpoint with new values for some tensors, by itself."""
    write_together([checkpoint.output(out, update, dict(provenance))[0]], force=force)
