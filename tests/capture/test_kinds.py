"""Every layer kind against an independent reference below all of torch's functions."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import verifix
from tests.reference import reference
from verifix.projection import Factors

ALPHA = 30.0


class Call(nn.Module):
    """A layer called with a fixed function of one batch."""

    def __init__(self, layer: nn.Module, call, classes: int = 3) -> None:
        super().__init__()
        self.layer = layer
        self.call = call
        self.head = nn.LazyLinear(classes)

    def forward(self, x):
        out = self.call(self.layer, x)
        return self.head(out.flatten(1))


class Weights(nn.Module):
    """Bare parameters for products without a module."""

    def __init__(self, **shapes) -> None:
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape) / 2))


def attention(*args, **kwargs) -> nn.Module:
    return nn.MultiheadAttention(*args, **kwargs)


def packed(layer, x):
    lengths = torch.tensor([5, 2, 4, 1, 3, 5])[: len(x)]
    sequence = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
    out = nn.utils.rnn.pad_packed_sequence(layer(sequence)[0], batch_first=True)[0]
    return out.mean(1)


def cells(layer, x):
    state = None
    for step in x.unbind(1):
        state = layer(step, state)
    return state[0] if isinstance(state, tuple) else state


TOKENS = (6, 5, 8)
CASES = {
    # name: (layer, call, shape of x, kinds of the layer's weights)
    "linear": (nn.Linear(8, 4), lambda m, x: m(x), TOKENS, {"linear"}),
    "matmul right": (Weights(w=(8, 4)), lambda m, x: x @ m.w, TOKENS, {"matmul"}),
    "matmul left": (Weights(w=(4, 5)), lambda m, x: torch.matmul(m.w, x), TOKENS, {"matmul"}),
    "mm": (Weights(w=(8, 4)), lambda m, x: torch.mm(x[:, 0], mat2=m.w), TOKENS, {"matmul"}),
    "mv": (Weights(w=(4, 5)), lambda m, x: torch.stack([torch.mv(m.w, row) for row in x[:, :, 0]]), TOKENS, {"matmul"}),
    "experts": (
        Weights(w=(3, 8, 4)),
        lambda m, x: torch.bmm(x.transpose(0, 1)[:3], m.w).transpose(0, 1),
        TOKENS,
        {"matmul"},
    ),
    "experts, all tokens to each": (Weights(w=(3, 8, 4)), lambda m, x: x[:, None] @ m.w, TOKENS, {"matmul"}),
    "experts with one matrix": (Weights(w=(1, 8, 4)), lambda m, x: x[:, None] @ m.w, TOKENS, {"matmul"}),
    "addmm": (
        Weights(w=(8, 4), b=(4,)),
        lambda m, x: torch.addmm(m.b, x.view(-1, 8), m.w).view(len(x), 5, 4),
        TOKENS,
        {"addmm"},
    ),
    "baddbmm": (
        Weights(w=(5, 8, 4), b=(5, 1, 4)),
        lambda m, x: torch.baddbmm(m.b, x.transpose(0, 1), m.w).transpose(0, 1),
        TOKENS,
        {"addmm"},
    ),
    "einsum linear": (Weights(w=(4, 8)), lambda m, x: torch.einsum("btd,od->bto", x, m.w), TOKENS, {"einsum"}),
    "einsum dots": (Weights(w=(8, 4)), lambda m, x: torch.einsum("...d,do->...o", x, m.w), TOKENS, {"einsum"}),
    "einsum implicit": (Weights(w=(8, 4)), lambda m, x: torch.einsum("td,do", x[:, 0], m.w).T, TOKENS, {"einsum"}),
    "einsum heads": (Weights(w=(2, 8, 3)), lambda m, x: torch.einsum("btd,hde->bthe", x, m.w), TOKENS, {"einsum"}),
    "einsum heads in": (
        Weights(w=(2, 4, 3)),
        lambda m, x: torch.einsum("bthe,heo->bto", x.unflatten(2, (2, 4)), m.w),
        TOKENS,
        {"einsum"},
    ),
    "einsum summed": (Weights(w=(4, 8)), lambda m, x: torch.einsum("btd,od->bo", x, m.w), TOKENS, {"einsum"}),
    "einsum experts": (
        Weights(w=(5, 8, 3)),
        lambda m, x: torch.einsum("bgd,gdo->bgo", x, m.w),
        TOKENS,
        {"einsum"},
    ),
    "bilinear": (nn.Bilinear(8, 8, 3), lambda m, x: m(x[:, 0], x[:, 1]), TOKENS, {"bilinear"}),
    **{
        f"transposed {n}d {key}": (
            (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[n - 1](4, 6, 2, **options),
            lambda m, x: m(x),
            (6, 4, *[3] * n),
            {f"conv_transpose{n}d"},
        )
        for n in (1, 2, 3)
        for key, options in {
            "plain": {},
            "stride": {"stride": 2, "output_padding": 1},
            "groups": {"groups": 2, "padding": 1, "dilation": 2},
        }.items()
    },
    "attention self": (attention(8, 2, batch_first=True), lambda m, x: m(x, x, x)[0], TOKENS, {"attention"}),
    "attention tokens first": (attention(8, 2), lambda m, x: m(x, x, x)[0], TOKENS, {"attention"}),
    "attention cross": (
        attention(8, 2, batch_first=True),
        lambda m, x: m(x[:, :2], x[:, 1:], x[:, 1:], need_weights=False)[0],
        TOKENS,
        {"attention"},
    ),
    "attention three": (
        attention(8, 2, batch_first=True, bias=False),
        lambda m, x: m(x[:, :2], x[:, 1:], 2 * x[:, 1:])[0],
        TOKENS,
        {"attention"},
    ),
    "attention kdim vdim": (
        attention(8, 2, kdim=4, vdim=3, batch_first=True),
        lambda m, x: m(x, x[..., :4], x[..., 4:7])[0],
        TOKENS,
        {"attention"},
    ),
    "attention bias_k": (
        attention(8, 2, add_bias_kv=True, add_zero_attn=True, batch_first=True),
        lambda m, x: m(x, x, x)[0],
        TOKENS,
        {"attention"},
    ),
    "attention mask": (
        attention(8, 2, batch_first=True),
        lambda m, x: m(x, x, x, attn_mask=torch.ones(5, 5).triu(1).bool(), is_causal=True)[0],
        TOKENS,
        {"attention"},
    ),
    "encoder layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda m, x: m(x),
        TOKENS,
        {"attention", "linear"},
    ),
    "decoder layer": (
        nn.TransformerDecoderLayer(8, 2, 16),
        lambda m, x: m(x, 2 * x),
        TOKENS,
        {"attention", "linear"},
    ),
    "lstm": (nn.LSTM(8, 4, batch_first=True), lambda m, x: m(x)[0], TOKENS, {"lstm"}),
    "lstm deep both ways": (nn.LSTM(8, 4, 2, bidirectional=True), lambda m, x: m(x)[0], TOKENS, {"lstm"}),
    "lstm projected": (nn.LSTM(8, 4, 2, proj_size=2, bias=False), lambda m, x: m(x)[0], TOKENS, {"lstm"}),
    "lstm packed": (nn.LSTM(8, 4, bidirectional=True, batch_first=True), packed, TOKENS, {"lstm"}),
    "gru packed": (nn.GRU(8, 4, 2, batch_first=True), packed, TOKENS, {"gru"}),
    "gru": (nn.GRU(8, 4, 2, bidirectional=True, bias=False), lambda m, x: m(x)[0], TOKENS, {"gru"}),
    "rnn": (nn.RNN(8, 4, 2), lambda m, x: m(x)[0], TOKENS, {"rnn_tanh"}),
    "rnn relu": (nn.RNN(8, 4, nonlinearity="relu"), lambda m, x: m(x)[0], TOKENS, {"rnn_relu"}),
    "lstm cell": (nn.LSTMCell(8, 4), cells, TOKENS, {"lstm"}),
    "gru cell": (nn.GRUCell(8, 4), cells, TOKENS, {"gru"}),
    "rnn cell": (nn.RNNCell(8, 4), cells, TOKENS, {"rnn_tanh"}),
}


def build(name: str) -> tuple[nn.Module, torch.Tensor, set[str]]:
    layer, call, shape, kinds = CASES[name]
    torch.manual_seed(3)
    model, x = Call(copy.deepcopy(layer), call).double(), torch.randn(shape, dtype=torch.float64)
    model.double()(x)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # biases of attention begin as zeros
            nn.init.normal_(parameter)
    return model.eval(), x, kinds


@pytest.mark.parametrize("name", CASES)
def test_a_layer_is_projected_as_its_single_operators_are(name):
    model, x, kinds = build(name)
    expected = reference(model, lambda m: m(x), ALPHA)
    fixed = verifix.correct(model, (x, torch.arange(6) % 3), alpha=ALPHA, progress=False, batch_size=6)
    assert {r.kind for r in fixed.layers if r.parameter.startswith("layer") and r.kind} == kinds
    weights = [r for r in fixed.layers if r.status != "corrected"]
    assert all("bias" in r.parameter or ".b" in r.parameter for r in weights), weights
    for (parameter, new), want in zip(fixed.model.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(new, want, rtol=1e-6, atol=1e-9, msg=lambda m, p=parameter: f"{p}: {m}")
    changed = {r.parameter for r in fixed.layers if r.relative_change}
    assert changed == {r.parameter for r in fixed.layers if r.status == "corrected"}
    torch.testing.assert_close(fixed.model(x), expected(x), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_the_projection_onto_everything_changes_nothing(name, monkeypatch):
    model, x, _ = build(name)
    monkeypatch.setattr(Factors, "project", lambda self, alpha: self.weight)
    fixed = verifix.correct(model, (x, torch.arange(6) % 3), alpha=ALPHA, progress=False)
    assert fixed.corrected
    torch.testing.assert_close(fixed.model(x), model(x), rtol=0, atol=1e-12)
