"""How long the pass that collects moments takes, compared with a plain forward pass and with its own floor.

Run from the repository's root on a machine that is otherwise quiet: ``python -m benchmarks.speed``. The two passes
take turns, in the batches and with the threads of a correction, and their least times are compared. The floor is the
forward pass and the multiplications that XᵀX needs, at the rate of this machine's own product of large matrices. The
network of a folder `shared` beside or above the repository is used if it is there. Writes JSON to benchmarks/results.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from benchmarks.coverage_models import declare_missing_operators
from benchmarks.environment import environment
from verifix.capture.collect import collect
from verifix.capture.interceptor import intercepting
from verifix.capture.kinds.lags import Patches, boxes
from verifix.capture.layer import Layer
from verifix.capture.sharing import Layers
from verifix.model.borrow import borrowed
from verifix.model.predict import predict
from verifix.model.samples import Samples, read_samples
from verifix.model.threads import threads_for
from verifix.model.work import work_of

OUT = Path("benchmarks/results/speed.json")
SHARED = next((folder / "shared" for folder in Path.cwd().parents if (folder / "shared").exists()), Path("../shared"))
CPU = torch.device("cpu")


def vgg() -> nn.Module:
    """Return the trained network of ../shared."""
    spec = importlib.util.spec_from_file_location("shared_vgg", SHARED / "networks/vgg11_bn_cifar.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    model: nn.Module = module.build()
    model.load_state_dict(load_file(SHARED / "networks/vgg11_bn_cifar10_sym25.safetensors"))
    return model


def of_torchvision(name: str) -> nn.Module:
    """Return a network of torchvision with random weights: the time does not depend on them."""
    library = declare_missing_operators()  # kept until torchvision is imported
    import torchvision

    del library
    model: nn.Module = getattr(torchvision.models, name)()
    return model


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "VGG11-BN, 32 px": (vgg, 1000, 32),
    "ResNet18, 224 px": (partial(of_torchvision, "resnet18"), 100, 224),
    "ViT-B/16, 224 px": (partial(of_torchvision, "vit_b_16"), 50, 224),
}
"""By name: what builds it, how many images, and their side."""


def multiplications(model: nn.Module, samples: Samples) -> float:
    """Return the multiplications that the moments of all samples take: half of XᵀX, or products per lag, or none."""
    few, count = 8, len(samples)
    widths: dict[Layer, tuple[int, int]] = {}
    seen: Counter[Layer] = Counter()
    total = 0.0

    class Counting:
        """Counts in place of multiplying."""

        def rows(self, layers: Layers, rows: torch.Tensor) -> None:
            seen[layers[0]] += rows.shape[1]
            widths[layers[0]] = rows.shape[0], rows.shape[2]

        def patches(self, _: Layers, patches: Patches) -> bool:
            nonlocal total
            enough = count * patches.geometry.positions >= patches.shape[2]
            if enough and patches.worthwhile:
                pixels = count * sum(box.pixels for box in boxes(patches.geometry))
                total += patches.groups * pixels * (patches.x.shape[1] // patches.groups) ** 2
            return enough and patches.worthwhile

        def waits(self, _: Layer) -> bool:
            return False

        def called(self, _: Layer) -> None:
            """Layers are counted when their rows come."""

        def shares(self, _: Layer) -> bool:
            return True

    batch = next(samples.batches(range(few), few))
    with borrowed(model), intercepting(model, Counting(), masked=False) as census:
        census.begin(few)
        model(batch.inputs)
        census.finish()
    for layer, (groups, width) in widths.items():
        rows = seen[layer] * count / few
        total += groups * rows * width * (width + 1) / 2 if rows >= width else 0  # fewer are kept as they are
    return total


def least(run: Callable[[], object]) -> float:
    """Return the seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def rate() -> float:
    """Return the multiplications per second of a large product in float32."""
    a = torch.rand(2048, 2048)
    return 2048**3 / min(least(lambda: a @ a) for _ in range(5))


def measure(name: str, rounds: int) -> dict[str, Any]:
    """Time both passes of a network in turns."""
    build, count, side = NETWORKS[name]
    torch.manual_seed(0)
    model = build().eval()
    samples = read_samples((torch.randn(count, 3, side, side), torch.arange(count) % 10))
    every, size = range(count), samples.batch_size or 64
    with borrowed(model), threads_for(partial(work_of, model, samples, CPU)):
        plain = partial(predict, model, samples, every, size, CPU)
        capture = partial(collect, model, samples, [every], batch_size=size, device=CPU)
        times = [(least(plain), least(capture)) for _ in range(rounds)]
        forward, captured = (min(column) for column in zip(*times, strict=True))
        floor = forward + multiplications(model, samples) / rate()
        threads = torch.get_num_threads()
    ratios = {"ratio": captured / forward, "floor_ratio": floor / forward, "over_floor": captured / floor}
    return {"images": count, "threads": threads, "forward": forward, "capture": captured, **ratios}


def main() -> None:
    """Measure the networks that were asked for, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--networks", nargs="*", default=[name for name in NETWORKS if SHARED.exists() or "VGG" not in name]
    )
    arguments = parser.parse_args()
    found = {name: measure(name, arguments.rounds) for name in arguments.networks}
    earlier = json.loads(OUT.read_text(encoding="utf-8"))["networks"] if OUT.exists() else {}
    OUT.write_text(json.dumps({"networks": earlier | found, **environment()}, indent=1) + "\n", encoding="utf-8")
    for name, row in found.items():
        print(f"{name}: {row['ratio']:.2f} times a forward pass, {row['over_floor']:.2f} times the floor")


if __name__ == "__main__":
    main()
