from __future__ import annotations

import gc
import random
import threading
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode

import verifix
from tests.cases import Bare, captured, projected, slow_projection, small_data, small_net
from verifix import DataError, UsageError
from verifix.capture.interceptor import intercepting
from verifix.capture.kinds import KINDS, Product, register
from verifix.capture.kinds.linear import Linear
from verifix.capture.layer import Bias
from verifix.capture.selection import Selection
from verifix.model.borrow import borrowed


def statuses(model, x) -> dict[str, tuple[str, str]]:
    _, census = captured(model, x)
    return {a.parameter: (a.status, a.reason) for a in census.accounts(model, Selection())}


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4, bias=False)
        self.second = nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(self.first(x).relu())


class Uses(nn.Module):
    """One parameter for every way of using one that no adapter understands."""

    def __init__(self) -> None:
        super().__init__()
        names = "tensordot einsum added embedded normed both scripted never fed left right"
        for name in names.split():
            setattr(self, name, nn.Parameter(torch.randn(4, 4)))

    def forward(self, x):
        x = torch.tensordot(x, self.tensordot, dims=1) + torch.einsum("bd,dd->bd", x, self.einsum) + self.added.sum(0)
        x = x + F.embedding(torch.zeros(len(x), dtype=torch.long), self.embedded)
        x = F.linear(x, self.normed / self.normed.norm()) + F.linear(x, self.both) + x @ self.both
        x = _scripted(x, self.scripted) + F.linear(self.fed, self.fed.new_ones(4, 4)).sum(0)
        x = x + (self.left @ self.right).sum(0)
        assert self.never.shape == (4, 4)  # looking at a parameter is not using it
        return x


def _matmul(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.matmul(x, w.t())


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scripting is deprecated, but users' models have it
    _scripted = torch.jit.script(_matmul)


def test_a_parameter_without_an_adapter_is_skipped_by_the_name_of_its_user_and_never_unused():
    found = statuses(Uses().eval(), torch.randn(3, 4))
    assert found["never"] == ("unused", "")
    for name, user in {
        "tensordot": "tensordot",
        "einsum": "einsum",
        "added": "sum",
        "embedded": "embedding (looked up, row by row)",
        "normed": "div",
        "both": "used through overlapping views",
        "scripted": "aten.mm",
        "fed": "linear",
        "left": "matmul",
        "right": "matmul",
    }.items():
        status, reason = found[name]
        assert status == "skipped", name
        assert user in reason, (name, reason)
        assert "used " in reason


def test_tied_weights_are_one_layer_with_the_rows_of_both_uses():
    model, x = Tied().double(), torch.randn(5, 4, dtype=torch.float64)
    table, census = captured(model, x)
    (moments,) = table.values()
    assert moments.n == 10
    assert [a.parameter for a in census.accounts(model, Selection())] == ["first.weight"]
    rows = torch.cat([x, model.first(x).relu()])[None].detach()
    expected = slow_projection(model.first.weight.detach()[None], rows, 30.0)[0]
    torch.testing.assert_close(projected(model, table, 30.0)["first.weight"], expected)


def test_tied_by_memory_alone_is_tied():
    model = Tied()
    model.second.weight = nn.Parameter(model.first.weight.data)
    assert statuses(model, torch.randn(2, 4)) == {"first.weight": ("corrected", "")}


def test_two_halves_of_one_parameter_are_two_layers_and_overlapping_ones_are_skipped():
    class Halves(nn.Module):
        def __init__(self, second: slice) -> None:
            super().__init__()
            self.weight, self.second = nn.Parameter(torch.randn(6, 4)), second

        def forward(self, x):
            return F.linear(x, self.weight[:3]) + F.linear(x, self.weight[self.second])

    disjoint, _ = captured(Halves(slice(3, 6)), torch.randn(2, 4))
    assert [layer.offset for layer in disjoint] == [0, 12]
    assert statuses(Halves(slice(2, 5)), torch.randn(2, 4)) == {"weight": ("skipped", "used through overlapping views")}


def test_a_transposed_view_and_a_channels_last_weight_are_written_where_they_lie():
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 4, dtype=torch.float64))

        def forward(self, x):
            return F.linear(x, self.weight.T)

    model, x = Transposed(), torch.randn(20, 6, dtype=torch.float64)
    table, _ = captured(model, x)
    expected = slow_projection(model.weight.detach().T[None], x[None], 20.0)[0].T
    torch.testing.assert_close(projected(model, table, 20.0)["weight"], expected)

    conv = nn.Conv2d(3, 4, 2).double()
    last = nn.Conv2d(3, 4, 2).double().to(memory_format=torch.channels_last)
    last.load_state_dict(conv.state_dict())
    images, labels = torch.randn(60, 3, 4, 4, dtype=torch.float64), torch.arange(60) % 4
    pool = [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    a = verifix.correct(nn.Sequential(conv, *pool), (images, labels), alpha=10.0, progress=False)
    b = verifix.correct(nn.Sequential(last, *pool), (images, labels), alpha=10.0, progress=False)
    torch.testing.assert_close(a.model[0].weight, b.model[0].weight, rtol=0, atol=1e-13)


def test_expanded_views_are_skipped():
    class Expanded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(1, 4))

        def forward(self, x):
            return F.linear(x, self.weight.expand(3, 4))

    assert statuses(Expanded(), torch.randn(2, 4)) == {"weight": ("skipped", "used through an expanded view")}


def test_autocast_does_not_hide_layers():
    model = small_net(bn=False).eval()
    with torch.autocast("cpu", torch.bfloat16):
        found = statuses(model, torch.randn(4, 8))
    assert set(found.values()) == {("corrected", "")}


def test_in_place_operations_after_a_layer_do_not_change_its_rows():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()

    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x):
            y = self.net(x)
            x.zero_()
            return y

    x = torch.randn(3, 4, dtype=torch.float64)
    plain, _ = captured(model, x.clone())
    destroyed, _ = captured(Overwrites(), x.clone())
    for a, b in zip(plain.values(), destroyed.values(), strict=True):
        assert torch.equal(a.gram, b.gram)


def test_the_captured_pass_gives_the_logits_of_the_plain_pass():
    model, x = small_net().eval(), torch.randn(5, 8)
    with torch.no_grad():
        expected = model(x)
    with borrowed(model), intercepting(model, lambda layer, rows: None):
        assert torch.equal(model(x), expected)


@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 3), lambda: nn.Conv1d(8, 3, 2, padding=1)])
def test_a_mask_of_samples_leaves_rows_out(make):
    layer = make().double()
    x = torch.randn(6, 8, *([5] if isinstance(layer, nn.Conv1d) else []), dtype=torch.float64)
    keep = torch.tensor([True, False, True, True, False, True])
    masked, _ = captured(layer, x, keep=keep)
    kept, _ = captured(layer, x[keep])
    assert torch.equal(next(iter(masked.values())).gram, next(iter(kept.values())).gram)


def test_a_mask_of_tokens_leaves_rows_out():
    layer, x = nn.Linear(4, 2).double(), torch.randn(3, 5, 4, dtype=torch.float64)
    keep = torch.arange(5) < torch.tensor([[2], [5], [0]])
    (moments,) = captured(layer, x, keep=keep)[0].values()
    assert moments.n == 7
    torch.testing.assert_close(moments.gram[0], x[keep].T @ x[keep])
    (pooled,) = captured(layer, x[:, 0], keep=keep)[0].values()
    assert pooled.n == 2


def test_a_mask_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match="does not fit the padding mask of"):
        captured(nn.Linear(4, 2), torch.randn(3, 5, 4), keep=torch.ones(3, 6, dtype=torch.bool))
    with pytest.raises(DataError, match="does not fit a mask"):
        captured(nn.Conv1d(4, 2, 1), torch.randn(3, 4, 5), keep=torch.ones(2, dtype=torch.bool))


class Bomb(nn.Module):
    """A layer that meddles with everything a model may touch while it runs, and raises on a real batch if armed."""

    def __init__(self, inner: nn.Module, armed: bool) -> None:
        super().__init__()
        self.inner, self.armed = inner, armed

    def forward(self, x):
        if isinstance(self.inner, nn.BatchNorm1d):
            self.inner.num_batches_tracked.add_(1)  # a model that changes its own buffers while it runs
            self.inner.running_var = self.inner.running_var.clone()
        torch.rand(1)
        np.random.random()  # noqa: NPY002 - the global generator is meant
        random.random()
        if self.armed and len(x) > 2:  # past the trial run, in the middle of the capture
            raise RuntimeError("boom")
        return self.inner(x)


def bombs(armed: int | None) -> nn.Sequential:
    model = nn.Sequential(*[Bomb(layer, i == armed) for i, layer in enumerate(small_net())]).train()
    model[1].eval()
    return model


def everything(model: nn.Module) -> dict:
    """All that running a model may change, in a form that compares equal exactly if nothing did."""
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "objects": [id(t) for m in model.modules() for t in (*m._parameters.values(), *m._buffers.values())],
        "versions": [p._version for p in model.parameters()],
        "grads": [p.requires_grad for p in model.parameters()],
        "flags": [m.training for m in model.modules()],
        "hooks": [
            len(getattr(m, a))
            for m in model.modules()
            for a in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
        ],
        "keys": [sorted(vars(m)) for m in model.modules()],
        "rng": torch.get_rng_state(),
        "numpy": str(np.random.get_state()),  # noqa: NPY002
        "python": random.getstate(),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "grad mode": torch.is_grad_enabled(),
        "modes": (len(_get_current_function_mode_stack()), _get_current_dispatch_mode()),
    }


def assert_same(a: dict, b: dict) -> None:
    for key in a:
        if key == "state":
            assert all(torch.equal(a[key][k], b[key][k]) for k in a[key])
        elif key == "rng":
            assert torch.equal(a[key], b[key])
        else:
            assert a[key] == b[key], key


@pytest.mark.parametrize("at", [*range(6), None])
@pytest.mark.parametrize("how", ["capture", "correct", "inspect", "collect"])
def test_nothing_is_left_changed_also_after_an_exception_at_each_layer(at, how):
    model, (x, y) = bombs(at), small_data()
    before = everything(model)
    run = {
        "capture": lambda: captured(model, x),
        "correct": lambda: verifix.correct(model, (x, y), progress=False),
        "inspect": lambda: verifix.inspect(model, x),
        "collect": lambda: verifix.collect_moments(model, (x, y), progress=False),
    }[how]
    if at is None:
        run()
    else:
        with pytest.raises((RuntimeError, DataError), match="boom"):
            run()
    assert_same(before, everything(model))


def test_a_backward_pass_works_after_a_capture():
    model = small_net().train()
    captured(model, torch.randn(4, 8))
    model(torch.randn(4, 8)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_two_threads_do_not_mix_their_captures():
    model = small_net(bn=False).double().eval()
    batches = [torch.randn(50, 8, dtype=torch.float64) for _ in range(4)]
    alone = [captured(model, x)[0] for x in batches]
    together: list = [None] * 4

    def work(i: int) -> None:
        for _ in range(5):
            together[i] = captured(model, batches[i])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for a, b in zip(alone, together, strict=True):
        for layer in a:
            assert a[layer].n == b[layer].n
            assert torch.equal(a[layer].gram, b[layer].gram)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_model_is_lent_to_one_thread_at_a_time():
    model, order, inside, leave = small_net().train(), [], threading.Event(), threading.Event()

    def first() -> None:
        with borrowed(model):
            inside.set()
            leave.wait(10)
            order.append("first leaves")

    def second() -> None:
        with borrowed(model):
            order.append("second enters")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    inside.wait(10)
    threads[1].start()
    threads[1].join(0.3)
    leave.set()
    for thread in threads:
        thread.join()
    assert order == ["first leaves", "second enters"]
    assert all(m.training for m in model.modules())


def test_the_fast_path_comes_back_when_two_models_are_captured_at_once():
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with borrowed(nn.Linear(2, 2)):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait(10)
    with borrowed(nn.Linear(2, 2)):
        assert not torch.backends.mha.get_fastpath_enabled()
        leave.set()
        thread.join()
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def test_include_and_exclude_by_name_and_by_kind():
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(), nn.Linear(12, 4), nn.Linear(4, 2)).eval()
    x = torch.randn(2, 2, 4)

    def corrected(**patterns) -> list[str]:
        survey = verifix.inspect(model, x, **patterns)
        assert len(survey.accounts) == 3
        return [layer.parameter for layer in survey.layers]

    assert corrected(include=["linear"]) == ["2.weight", "3.weight"]
    assert corrected(include=["[02].*"]) == ["0.weight", "2.weight"]
    assert corrected(exclude=["conv1d", "3.*"]) == ["2.weight"]
    for patterns in ({"include": ["conv2d"]}, {"exclude": ["head.*"]}):
        with pytest.raises(UsageError, match="matches no layer"):
            verifix.inspect(model, x, **patterns)


def test_users_can_add_a_layer_kind():
    class Tensordot:
        name = "tensordot"
        functions = (torch.tensordot,)

        def products(self, args, kwargs, keep):
            yield Product(args[1], 1, lambda: iter([args[0].unsqueeze(0)]))

        def matrix(self, weight, groups):
            return weight.T.unsqueeze(0)

        def weight(self, matrix, shape):
            return matrix.squeeze(0).T

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(8, 3, dtype=torch.float64))

        def forward(self, x):
            return torch.tensordot(x, self.weight, dims=1)

    model, (x, y) = Model(), small_data()
    assert statuses(model, x.double()) == {"weight": ("skipped", "used by tensordot")}
    register(Tensordot())
    try:
        fixed = verifix.correct(model, (x.double(), y), alpha=20.0, check_labels=False, progress=False)
        expected = slow_projection(model.weight.detach().T[None], x.double()[None], 20.0)[0].T
        torch.testing.assert_close(fixed.model.weight.detach(), expected)
        with pytest.raises(UsageError, match="handles already"):
            register(Tensordot())
    finally:
        del KINDS[torch.tensordot]
    second = Linear()
    second.functions = (torch.tensordot,)
    with pytest.raises(UsageError, match="exists already"):
        register(second)


def test_a_not_finite_activation_names_the_layer():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))

    class Overflows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model

        def forward(self, x):
            return self.net[1](self.net[0](x) / 0)

    with pytest.raises(DataError, match=r"layer 'net.1.weight' contains NaN or Inf"):
        captured(Overflows(), torch.randn(3, 4))


def test_memory_of_rows_does_not_grow_with_the_batch():
    from verifix.capture.kinds import unfold

    pieces = list(unfold(torch.randn(9, 2, 8, 8), (3, 3), (1, 1), [(1, 1), (1, 1)], (1, 1), 1, chunk_bytes=1))
    assert [p.shape for p in pieces] == [(1, 64, 18)] * 9


def test_an_unbatched_input_of_a_convolution_counts_as_one_sample():
    conv = nn.Conv2d(2, 3, 2).double()
    x = torch.randn(2, 5, 5, dtype=torch.float64)
    (single,), (batched,) = captured(conv, x)[0].values(), captured(conv, x[None])[0].values()
    assert torch.equal(single.gram, batched.gram)


def test_captures_leave_no_memory_behind():
    model, x = Bare(), torch.randn(30, 6, dtype=torch.float64)
    captured(model, x)
    gc.collect()
    count = sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())
    for _ in range(20):
        captured(model, x)
    gc.collect()
    assert sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()) <= count


class Biased(nn.Module):
    """Every kind of layer that adds a bias to its outputs, and some that only seem to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 1, groups=2)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.rnn = nn.LSTM(4, 4, batch_first=True)
        self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
        self.up, self.pair = nn.ConvTranspose1d(4, 4, 1), nn.Bilinear(4, 4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.conv(x).mT
        x = self.rnn(self.attention(x, x, x)[0])[0]
        x = torch.addmm(self.bias, x.flatten(0, 1), self.weight).reshape(x.shape)
        x = self.up(x.mT).mean(2)
        return self.head(self.pair(x, x))


def biases(model: nn.Module, x: torch.Tensor) -> dict[str, list[Bias]]:
    _, census = captured(model, x)
    found: dict[str, list[Bias]] = {}
    for layer, bias in census.biases.items():
        found.setdefault(layer.parameter, []).append(bias)
    return found


def test_the_bias_of_a_layer_is_a_run_of_a_parameter():
    bias = Bias("b", 2, 3)
    assert replace(bias, start=1).view(torch.arange(9.0)).tolist() == [1, 2, 3]
    assert biases(Biased().eval(), torch.randn(3, 4, 5)) == {
        "conv.weight": [Bias("conv.bias", 0, 4)],
        "attention.in_proj_weight": [Bias("attention.in_proj_bias", 0, 12)],
        "attention.out_proj.weight": [Bias("attention.out_proj.bias", 0, 4)],
        "rnn.weight_ih_l0": [Bias("rnn.bias_ih_l0", 0, 16)],
        "rnn.weight_hh_l0": [Bias("rnn.bias_hh_l0", 0, 16)],
        "weight": [Bias("bias", 0, 4)],
        "head.weight": [Bias("head.bias", 0, 3)],
    }


class Odd(nn.Module):
    """A layer whose bias is not its own alone, or that has none."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.none = nn.Linear(4, 4, bias=False)
        self.one = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 3)
        if way == "tied":
            self.second.bias = self.first.bias

    def forward(self, x):
        if self.way == "tied":
            return self.head(self.second(self.first(x)))
        if self.way == "with and without":
            return self.head(self.first(x) + F.linear(x, self.first.weight))
        if self.way == "scalar":
            return self.head(F.linear(x, self.first.weight, self.one.expand(4)) + F.linear(x, self.none.weight))
        if self.way == "alpha":
            return self.head(torch.addmm(self.first.bias, x, self.first.weight, alpha=2))
        return self.head(self.none(x))


@pytest.mark.parametrize("way", ["tied", "with and without", "scalar", "alpha", "none"])
def test_a_bias_that_is_shared_or_not_always_added_is_not_a_layers_own(way):
    assert biases(Odd(way).eval(), torch.randn(3, 4)) == {"head.weight": [Bias("head.bias", 0, 3)]}


class ByPython(nn.Module):
    """Multiplies numbers that have been Python's own on the way, sample by sample."""

    def __init__(self, way) -> None:
        super().__init__()
        self.way, self.table = way, nn.Parameter(torch.randn(5, 8))
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        rows = torch.stack([F.linear(self.way(row), self.first.weight) for row in x])
        # The same five rows with every batch, which count once for each of its samples.
        return self.head((rows + F.linear(self.table, self.first.weight).mean(0)).tanh())


WAYS = {
    "a list": lambda row: torch.tensor(row.tolist()),
    "items": lambda row: torch.as_tensor([x.item() for x in row]),
    "floats": lambda row: torch.stack([torch.ones(()) * float(x) for x in row]),
    "numpy": lambda row: torch.tensor(row.numpy()),
    "an array": lambda row: torch.tensor(np.asarray(row)),
    "text": lambda row: torch.tensor([float(f"{x:.9g}") for x in row]),
    "filled": lambda row: torch.cat([torch.full((1,), float(x)) for x in row]),
    "nothing": lambda row: row,
}


@pytest.mark.parametrize("batch_size", [1, 7, 64, 80])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_what_went_through_python_is_no_constant(way, batch_size):
    torch.manual_seed(1)
    model, (x, y) = ByPython(way).eval(), small_data()
    found = verifix.correct(model, (x, y), alpha=30.0, batch_size=batch_size, progress=False, check_labels=False)
    rows = torch.cat([x, *([model.table.detach()] * 80)]).double()
    c = rows.mT @ rows / rows.square().sum()
    expected = 30 * model.first.weight.double() @ c @ torch.linalg.inv(torch.eye(8) + 29 * c)
    torch.testing.assert_close(found.corrected["first.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_neither_reading_samples_nor_multiplying_rows_is_watched():
    model = nn.Linear(3, 2)
    modes = []

    def read():
        yield model.weight.detach() * 2

    def sink(layer, rows):
        modes.append(_get_current_dispatch_mode())

    with borrowed(model), intercepting(model, sink) as census:
        for x in census.aside(read()):
            census.begin(2)
            model(x)
            assert _get_current_dispatch_mode() is not None
        assert "weight" not in census.used_by
        model.weight * 2
    assert modes == [None]
    assert "weight" in census.used_by
