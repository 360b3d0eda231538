"""Everything stays on the model's device, and the host reads nothing of it per layer or batch.

The device is torch's meta device, which has no values: to read one fails, as does any operation whose result's shape
depends on values, and both would make a GPU wait.
"""

from __future__ import annotations

from collections import Counter

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from verifix.capture.collect import Collected, collect
from verifix.capture.layer import read_matrix, write_matrix
from verifix.model.predict import predict
from verifix.model.samples import Samples, read_samples
from verifix.projection import prepare

META = torch.device("meta")
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default}


class Reads(TorchDispatchMode):
    """Counts what the host reads of the device, and answers 1, True or zeros; refuses operations across devices."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.ndim or x.device == META}
        if devices == {"meta"} and func in {aten._local_scalar_dense.default, aten.equal.default}:
            self.found["number"] += 1
            return True if func is aten.equal.default or args[0].dtype == torch.bool else 1
        if func is aten._to_copy.default and args[0].is_meta and str(kwargs.get("device", META)) != "meta":
            self.found["tensor"] += 1
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        assert len(devices) < 2 or func in COPIES, f"{func} on {devices}"
        return func(*args, **kwargs)


class Net(nn.Module):
    """Convolutions by lags, unfolded and grouped, attention, and linear layers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(depth))
        self.down = nn.Conv2d(8, 16, 3, stride=2, groups=2)
        self.norm = nn.BatchNorm2d(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        for block in self.blocks:
            x = block(x).relu()
        tokens = self.norm(self.down(x)).flatten(2).mT
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


def samples_on_the_host(n: int) -> Samples:
    return read_samples((torch.randn(n, 3, 8, 8), torch.arange(n) % 4))


def run(samples: Samples, depth: int = 1, batch_size: int = 4) -> tuple[Collected, Counter[str]]:
    """Collect moments in two folds on the device, with what the host read of it."""
    model, folds = Net(depth).eval().to(META), [range(k, len(samples), 2) for k in range(2)]
    with torch.no_grad(), Reads() as reads:
        return collect(model, samples, folds, batch_size=batch_size, device=META), reads.found


def test_the_host_reads_no_more_with_more_layers_and_batches():
    few, many = samples_on_the_host(8), samples_on_the_host(20)
    found, reads = run(few)
    assert len(found.layers) == 6
    assert {x.device for table in found.folds for m in table.values() for x in m.tensors} == {META}
    assert reads == {"number": 2, "tensor": 2}  # for each fold, whether all layers are finite, and the answers
    assert run(few, batch_size=2)[1] == reads
    assert run(many, depth=3)[1] == reads


def test_the_projection_stays_on_the_device_in_both_forms():
    found, _ = run(samples_on_the_host(12))
    forms = {found.moments(layer, range(2), {}).rows is None for layer in found.layers}
    assert forms == {True, False}
    values = dict(Net(1).to(META).named_parameters())
    with torch.no_grad(), Reads() as reads:
        for layer in found.layers:
            factors = prepare(read_matrix(layer, values.__getitem__), found.moments(layer, range(2), {}))
            update = {layer.parameter: torch.empty_like(values[layer.parameter])}
            write_matrix(layer, update, factors.project(10.0))
            assert update[layer.parameter].device == META
    assert not reads.found


def test_answers_come_back_in_one_copy():
    samples = samples_on_the_host(40)
    with torch.no_grad(), Reads() as reads:
        logits = predict(Net(1).eval().to(META), samples, range(40), 8, META)
    assert logits.shape == (40, 4)
    assert reads.found == {"tensor": 1}
