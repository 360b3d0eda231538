"""Layers that see the same rows have one moment, and the moments are those that each would have on its own."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import verifix
from tests.stage_cases import CPU, interleaved
from verifix.capture import collect as collecting
from verifix.capture import interceptor
from verifix.capture.collect import Collected, collect
from verifix.capture.kinds import attention
from verifix.capture.memory_plan import LayerSize, Limits, planned
from verifix.capture.sharing import Sharing
from verifix.model.borrow import borrowed
from verifix.model.samples import read_samples
from verifix.moments import Moments

N, TOKENS, WIDTH = 60, 4, 6


class Heads(nn.Module):
    """Three linear layers of one input, called as `how` says."""

    def __init__(self, how) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, 3)
        self.how = how

    def forward(self, x):
        return self.head(self.how(self, x).mean(1))


def plainly(m: Heads, x: Tensor) -> Tensor:
    x = x.tanh()
    return m.q(x) * m.k(x) + m.v(x)


def one_for_another(m: Heads, x: Tensor) -> Tensor:
    """The same rows in another tensor, so that nothing says they are the same."""
    return m.q(x) * m.k(x.clone()) + m.v(x.clone())


def many_calls(m: Heads, x: Tensor) -> Tensor:
    for _ in range(3):
        x = (m.q(x) * m.k(x) + m.v(x)).tanh()
    return x


def apart_at_times(m: Heads, x: Tensor) -> Tensor:
    """Layers share in batches of even size, as in the trial's other call, and not in others."""
    y = x if len(x) % 2 or len(x) == 1 else 2 * x
    return m.q(x) * m.k(y) + m.v(x)


def not_always_called(m: Heads, x: Tensor) -> Tensor:
    found = m.q(x) + m.v(x)
    return found * m.k(x) if len(x) != 16 else found


def called_again(m: Heads, x: Tensor) -> Tensor:
    """The first layer comes twice before the others come, from the second batch on."""
    found = m.q(x) + (m.q(x + 1) if len(x) > 1 else 0)
    return found * m.k(x) + m.v(x)


def written_to(m: Heads, x: Tensor) -> Tensor:
    x = x.tanh()
    q = m.q(x)
    if len(x) > 1:
        x.mul_(2)
    return q * m.k(x) + m.v(x)


def written_to_unseen(m: Heads, x: Tensor) -> Tensor:
    """What writes is another tensor with the same memory, whose versions are counted apart."""
    x = x.tanh()
    q = m.q(x)
    if len(x) > 1:
        x.data.relu_()
    return q * m.k(x) + m.v(x)


def written_to_inside(m: Heads, x: Tensor) -> Tensor:
    x = x.tanh()
    q = m.q(x)
    if len(x) > 1:
        F.relu(x.data, inplace=True)
    return q * m.k(x) + m.v(x)


def other_layers_between(m: Heads, x: Tensor) -> Tensor:
    q = m.q(x)
    return m.v(q) * m.k(x)


def never_counted(m: Heads, x: Tensor) -> Tensor:
    with torch.inference_mode():
        x = x.tanh()
        return (m.q(x) * m.k(x) + m.v(x)).clone()


SHARED = {plainly: 3, many_calls: 3, apart_at_times: 2, not_always_called: 2}
ALONE = [one_for_another, written_to, written_to_unseen, written_to_inside, called_again, other_layers_between]


def collected(model: nn.Module, x: Tensor, limits: Limits | None = None, **settings) -> Collected:
    samples = read_samples((x, torch.arange(len(x)) % 3))
    model = copy.deepcopy(model).eval()
    with borrowed(model):
        how = {"batch_size": 15, "device": CPU, "limits": limits} | settings
        return collect(model, samples, interleaved(len(x), 2), **how)


def compared(model: nn.Module, x: Tensor, **settings) -> Collected:
    """Collect once with sharing and once without, and see that it is the same to the bit."""
    found = collected(model, x, **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sharing, "learned", lambda self: {})
        plain = collected(model, x, **settings)
    assert found.layers == plain.layers
    assert torch.equal(found.logits, plain.logits)
    for own, other in zip(found.folds, plain.folds, strict=True):
        assert [*own] == [*other]
        for layer in own:
            assert own[layer].n == other[layer].n
            torch.testing.assert_close(own[layer].gram, other[layer].gram, rtol=1e-14, atol=1e-14)
            assert (own[layer].rows is None) == (other[layer].rows is None)
    return found


def objects(found: Collected, *parts: str) -> int:
    """Number of moments that the layers of some names have in the first fold."""
    return len({id(m) for layer, m in found.folds[0].items() if layer.parameter.startswith(parts)})


@pytest.mark.parametrize("size", [16, 7])
@pytest.mark.parametrize("how", [*SHARED, *ALONE, never_counted], ids=lambda how: how.__name__)
def test_the_moments_are_those_of_each_layer_alone(how, size):
    torch.manual_seed(0)
    found = compared(Heads(how).double(), torch.randn(N, TOKENS, WIDTH, dtype=torch.float64), batch_size=size)
    assert len(found.layers) == 4
    if how in (plainly, many_calls):
        assert objects(found, "q", "k", "v") == 1
    if how is one_for_another:
        assert objects(found, "q", "k", "v") == 3


def test_they_are_those_of_the_rows_themselves():
    model, x = Heads(plainly).double(), torch.randn(N, TOKENS, WIDTH, dtype=torch.float64)
    rows = x[::2].tanh().flatten(0, 1)
    for layer, moments in collected(model, x).folds[0].items():
        if layer.parameter != "head.weight":
            torch.testing.assert_close(moments.gram[0], rows.T @ rows, rtol=1e-12, atol=1e-12)


def test_the_rows_are_multiplied_once(monkeypatch):
    seen = []
    add = collecting.add_rows
    monkeypatch.setattr(
        collecting, "add_rows", lambda table, layers, rows: (seen.append(layers), add(table, layers, rows))
    )
    collected(Heads(plainly), torch.randn(N, TOKENS, WIDTH))
    assert sorted({tuple(layer.parameter for layer in layers) for layers in seen}) == [
        ("head.weight",),
        ("q.weight", "k.weight", "v.weight"),
    ]
    assert len(seen) == 2 * 4


class Branches(nn.Module):
    """Convolutions, attention and recurrent layers of which several see the same rows."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.narrow = nn.Conv2d(8, 8, 1)
        self.steps = nn.GRU(8, 4, bidirectional=True, batch_first=True)
        self.cross = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.one(x) + self.two(x) * self.narrow(x)
        tokens = x.flatten(2).mT
        own = self.steps(tokens)[0]
        return self.head(self.cross(tokens[:, :3], own, own, need_weights=False)[0].mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_convolutions_attention_and_both_directions_share(dtype):
    torch.manual_seed(0)
    found = compared(Branches().to(dtype), torch.randn(N, 8, 6, 6, dtype=dtype))
    assert objects(found, "one", "two") == 1
    assert objects(found, "one", "narrow") == 2
    assert objects(found, "steps.weight_ih") == 1
    assert objects(found, "steps") == 3
    assert objects(found, "cross.in_proj") == 2  # the keys are the values, the queries are others


def test_drawn_rows_are_each_layers_own_and_groups_hold_layers_that_share():
    torch.manual_seed(0)
    model, x = Heads(plainly), torch.randn(N, TOKENS, WIDTH)
    drawn = compared(model, x, limits=Limits(None, 50))
    assert objects(drawn, "q", "k", "v") == 3
    limited = compared(model, x, limits=Limits(2800))
    assert limited.remarks
    plain = collected(model, x)
    for own, other in zip(limited.folds, plain.folds, strict=True):
        assert all(torch.equal(own[layer].gram, other[layer].gram) for layer in other)


def test_the_plan_counts_shared_moments_once():
    layers = collected(Heads(plainly), torch.randn(N, TOKENS, WIDTH)).layers
    q, k, v, head = layers
    sizes = {layer: LayerSize(1, 10, 4, 100.0) for layer in (q, head, k, v)}
    one, space = sizes[q].moments(30, 60), sizes[q].workspace(90)
    plan = planned(sizes, 90, 3, Limits(space + one), {k: q, v: q})
    assert plan.groups == ((q, k, v), (head,))
    assert plan.in_file == 3 * 2 * one
    survey = verifix.inspect(Heads(plainly), torch.randn(2, TOKENS, WIDTH))
    assert {a.parameter: b.parameter for a, b in survey.shared.items()} == {
        "k.weight": "q.weight",
        "v.weight": "q.weight",
    }


def test_a_correction_and_saved_moments_are_the_same(tmp_path):
    torch.manual_seed(0)
    model, x = Heads(plainly).eval(), torch.randn(N, TOKENS, WIDTH)
    with torch.no_grad():
        labels = model(x).argmax(1)
    settings = {"alpha": 20.0, "progress": False, "check_labels": False}
    found = verifix.correct(model, (x, labels), **settings)
    verifix.collect_moments(model, (x[:30], labels[:30]), progress=False).save(tmp_path / "m.safetensors")
    later = verifix.correct(model, (x[30:], labels[30:]), moments=tmp_path / "m.safetensors", **settings)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Sharing, "learned", lambda self: {})
        plain = verifix.correct(model, (x, labels), **settings)
    for name, weight in plain.corrected.items():
        assert torch.equal(found.corrected[name], weight)
        torch.testing.assert_close(later.corrected[name], weight, rtol=1e-5, atol=1e-6)


def test_merging_leaves_shared_moments_alone():
    a = Moments(torch.ones(1, 9, 4))
    (a + a).add_(torch.ones(1, 1, 4))
    assert a.n == 9
    assert float(a.gram[0, 0, 0]) == 9


class Attention(nn.Module):
    """Attention whose output projection may be tied to an input projection, or under autocast."""

    def __init__(self, tied: bool, lowered: bool) -> None:
        super().__init__()
        self.mha = nn.MultiheadAttention(8, 2, kdim=8, vdim=8, batch_first=True)
        if tied:
            self.mha.in_proj_weight = None
            self.mha._qkv_same_embed_dim = False
            self.mha.q_proj_weight = self.mha.out_proj.weight
            self.mha.k_proj_weight, self.mha.v_proj_weight = (nn.Parameter(torch.randn(8, 8) / 3) for _ in range(2))
        self.lowered = lowered
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.lowered):
            return self.head(self.mha(x, x, x)[0].mean(1)).float()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("lowered", [False, True])
def test_what_attention_hands_to_its_output_is_seen_as_it_runs(tied, lowered, monkeypatch):
    torch.manual_seed(0)
    model, x = Attention(tied, lowered), torch.randn(N, 5, 8)
    again = []
    run = attention._before_output
    monkeypatch.setattr(attention, "_before_output", lambda bound: (again.append(1), run(bound))[1])
    seen = collected(model, x)
    assert bool(again) == (tied or lowered)
    monkeypatch.setattr(interceptor, "_PRODUCTS", {})
    plain = collected(model, x)
    assert again
    for own, other in zip(seen.folds, plain.folds, strict=True):
        assert own.keys() == other.keys()
        for layer in own:
            torch.testing.assert_close(own[layer].gram, other[layer].gram, rtol=1e-6, atol=1e-6)
