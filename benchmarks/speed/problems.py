"""Networks by name, each with samples: real ones with real samples, and small ones of a given size."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from benchmarks.coverage_models import declare_missing_operators
from benchmarks.speed.rounds import Found, timed
from verifix.capture.collect import collect
from verifix.model.borrow import borrowed
from verifix.model.predict import predict
from verifix.model.samples import Samples, read_samples
from verifix.model.sources import DEFAULT_BATCH_SIZE
from verifix.model.threads import threads_for
from verifix.model.work import work_of

SHARED = next((folder / "shared" for folder in Path.cwd().parents if (folder / "shared").exists()), Path("../shared"))
CPU = torch.device("cpu")
SIZE = DEFAULT_BATCH_SIZE


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, and samples to correct it from."""

    model: nn.Module
    inputs: Tensor
    labels: Tensor

    @cached_property
    def samples(self) -> Samples:
        """The samples as verifix reads them."""
        return read_samples((self.inputs, self.labels))


def problem(name: str, count: int) -> Problem:
    """Return a network with so many samples.

    Parameters
    ----------
    name
        ``vgg11_bn``, the trained network of the folder `shared`, with verified images; ``digits``, that of the
        demonstration; ``chain-256x4``, four linear layers of width 256; ``tiny``, a small convolutional network; or a
        network of torchvision. The last three have random weights and samples: time does not depend on them.
    count
        How many samples.

    Returns
    -------
    Problem
        In eval mode.
    """
    torch.manual_seed(0)
    labels = torch.arange(count) % 10
    if name == "vgg11_bn":
        return _vgg(count)
    if name == "digits":
        return _digits(count)
    if name.startswith("chain-"):
        width, depth = map(int, name.removeprefix("chain-").split("x"))
        return Problem(chain(width, depth).eval(), torch.randn(count, width), labels)
    if name == "tiny":
        return Problem(_tiny().eval(), torch.randn(count, 3, 8, 8), labels)
    return Problem(of_torchvision(name).eval(), torch.randn(count, 3, 224, 224), labels)


def chain(width: int, depth: int) -> nn.Module:
    """Return linear layers of one width with ReLU between, and a head of 10 classes."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def _tiny() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(72, 10)),
    )


def _vgg(count: int) -> Problem:
    from benchmarks.tasks import IMAGES
    from verifix.io.data.open import open_data

    if not (SHARED / "networks").is_dir():
        sys.exit(f"no folder {SHARED}/networks: this part needs the trained network there; run the other parts alone")
    spec = importlib.util.spec_from_file_location("shared_vgg", SHARED / "networks/vgg11_bn_cifar.py")
    module = importlib.util.module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(module)  # type: ignore[union-attr]
    model: nn.Module = module.build()
    model.load_state_dict(load_file(SHARED / "networks/vgg11_bn_cifar10_sym25.safetensors"))
    batches = list(open_data(SHARED / "data/cifar10_verified.parquet", IMAGES).read(list(range(count)), 500))
    return Problem(model.eval(), torch.cat([b.inputs for b in batches]), torch.cat([b.labels for b in batches]))


def _digits(count: int) -> Problem:
    from verifix.cli.demo import digits

    data = digits.load(0)
    return Problem(
        digits.trained(data, 0).eval(), data.inputs[data.verified[:count]], data.labels[data.verified[:count]]
    )


def of_torchvision(name: str) -> nn.Module:
    """Return a network of torchvision with random weights."""
    library = declare_missing_operators()  # kept until torchvision is imported
    import torchvision

    del library
    model: nn.Module = getattr(torchvision.models, name)()
    return model


@contextmanager
def computing(problem: Problem) -> Iterator[int]:
    """Borrow the model and compute with the threads of a correction while the context lasts; yields their number."""
    with borrowed(problem.model), threads_for(partial(work_of, problem.model, problem.samples, CPU)):
        yield torch.get_num_threads()


def forward(problem: Problem) -> Found:
    """Time one run of the model over all samples, in the batches and with the threads of a correction."""
    samples = problem.samples
    with computing(problem):
        return timed(partial(predict, problem.model, samples, range(len(samples)), SIZE, CPU))


def capture(problem: Problem) -> Found:
    """Time the pass that collects the moments of all samples."""
    samples = problem.samples
    with computing(problem):
        every = [range(len(samples))]
        return timed(partial(collect, problem.model, samples, every, batch_size=SIZE, device=CPU))
