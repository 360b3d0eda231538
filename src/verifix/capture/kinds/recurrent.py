"""Recurrent layers: what their input and recurrent weights multiply, step by step.

The functions are opaque, so each layer and direction is unrolled here beside the real call. The hidden state before a
step is the row of the recurrent weight; the outputs of a layer are the rows of the next one's input weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from verifix.capture.kinds.base import Product, RowMajor, bind, chunked
from verifix.capture.kinds.masks import REMEDY, RowMask
from verifix.errors import DataError

State = tuple[Tensor, ...]
"""The hidden state ``[samples, H]``, and the cell state of an LSTM."""

Step = Callable[[Tensor, State, Sequence[Tensor]], tuple[State, Tensor | None]]
"""``(x [samples, d], state, weights) → (new state, input of the hidden state's own projection or None)``."""


def _lstm_step(x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[State, Tensor | None]:
    hidden, cell = state
    w_ih, w_hh, *biases = weights
    projection = biases.pop() if len(biases) % 2 else None
    gates = x @ w_ih.T + hidden @ w_hh.T + sum(biases)
    i, f, g, o = gates.chunk(4, dim=1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()
    return ((hidden, cell), None) if projection is None else ((hidden @ projection.T, cell), hidden)


def _gru_step(x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[State, Tensor | None]:
    (hidden,) = state
    w_ih, w_hh, *biases = weights
    b_ih, b_hh = biases or (0.0, 0.0)
    r, z, n = (x @ w_ih.T + b_ih).chunk(3, dim=1)
    hr, hz, hn = (hidden @ w_hh.T + b_hh).chunk(3, dim=1)
    update = (z + hz).sigmoid()
    new = (n + (r + hr).sigmoid() * hn).tanh()
    return ((1 - update) * new + update * hidden,), None


def _plain_step(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(x: Tensor, state: State, weights: Sequence[Tensor]) -> tuple[State, Tensor | None]:
        w_ih, w_hh, *biases = weights
        return (activation(x @ w_ih.T + state[0] @ w_hh.T + sum(biases)),), None

    return step


@dataclass(frozen=True)
class _Sequences:
    """``x [steps, samples, d]``, which of its steps are real, and which of them count: bool ``[steps, samples]``."""

    x: Tensor
    real: Tensor
    counted: Callable[[], Tensor]


class Recurrent(RowMajor):
    """``nn.LSTM``, ``nn.GRU`` or ``nn.RNN``, in any number of layers and directions, packed or not; and their cells.

    Parameters
    ----------
    name
        Name of the kind.
    step
        One step of the recurrence.
    functions
        The functions of whole sequences.
    cells
        The functions of single steps.
    """

    def __init__(self, name: str, step: Step, functions: Sequence[Any], cells: Sequence[Any]) -> None:
        self.name = name
        self.step = step
        self.functions = (*functions, *cells)

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name the weights of every layer and direction; see `LayerKind`."""
        if "w_ih" in kwargs or (len(args) > 3 and isinstance(args[3], Tensor)):
            yield from _of_cell(args, kwargs, keep)
            return
        packed = isinstance(args[1], Tensor) and isinstance(args[3], (list, tuple))
        if packed:
            data, sizes, hx, weights, _, layers, _, _, both = args
            sequences = _unpacked(data, sizes)
        else:
            x, hx, weights, _, layers, _, _, both, batch_first = args
            sequences = _steps_first(x, batch_first, keep)
        state = hx if isinstance(hx, (list, tuple)) else (hx,)
        directions = 2 if both else 1
        each = len(weights) // (layers * directions)
        grouped = [weights[i : i + each] for i in range(0, len(weights), each)]
        yield from self._unrolled(sequences, state, grouped, directions)

    def _unrolled(
        self, sequences: _Sequences, state: Sequence[Tensor], weights: Sequence[Sequence[Tensor]], directions: int
    ) -> Iterator[Product]:
        x = sequences.x
        for layer in range(len(weights) // directions):
            outputs = []
            for direction in range(directions):
                i = layer * directions + direction
                first = tuple(part[i].to(x.dtype) for part in state)
                own = [weight.to(x.dtype) for weight in weights[i]]
                before, after, inner = self._run(x, sequences.real, first, own, backwards=direction == 1)
                biases = weights[i][2:4] if len(weights[i]) >= 4 else (None, None)
                yield _product(weights[i][0], x, sequences.counted, biases[0])
                yield _product(weights[i][1], before, sequences.counted, biases[1])
                if inner is not None:
                    yield _product(weights[i][-1], inner, sequences.counted)
                outputs.append(after)
            x = torch.cat(outputs, dim=2)

    def _run(
        self, x: Tensor, real: Tensor, state: State, weights: Sequence[Tensor], *, backwards: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the hidden states before and after each step, and the inputs of their projection, in step order."""
        before, after, inner = [], [], []
        order = range(len(x))
        for t in reversed(order) if backwards else order:
            before.append(state[0])
            new, projected = self.step(x[t], state, weights)
            state = tuple(torch.where(real[t, :, None], a, b) for a, b in zip(new, state, strict=True))
            after.append(state[0])
            inner.append(projected)
        in_order = [parts[::-1] if backwards else parts for parts in (before, after, inner)]
        inside = None if inner[0] is None else torch.stack([part for part in in_order[2] if part is not None])
        return torch.stack(in_order[0]), torch.stack(in_order[1]), inside  # type: ignore[arg-type]


def _product(weight: Tensor, x: Tensor, counted: Callable[[], Tensor], bias: Tensor | None = None) -> Product:
    return Product(weight, 1, lambda: chunked(x[counted()].unsqueeze(0)), bias=bias, source=(x, counted))


def _steps_first(x: Tensor, batch_first: bool, keep: RowMask | None) -> _Sequences:
    """Bring ``[samples, steps, d]`` to ``[steps, samples, d]``; every step is real to the network."""
    x = x.transpose(0, 1) if batch_first else x
    real = x.new_ones(x.shape[:2], dtype=torch.bool)
    if keep is None:
        return _Sequences(x, real, lambda: real)
    return _Sequences(x, real, lambda: keep.at_steps(x.shape[:2]).to(x.device))


def _unpacked(data: Tensor, sizes: Tensor) -> _Sequences:
    """Pad a packed sequence again, to know which steps are real."""
    x, lengths = pad_packed_sequence(PackedSequence(data, sizes))
    real = torch.arange(len(x), device=x.device)[:, None] < lengths.to(x.device)
    return _Sequences(x, real, lambda: real)


def _of_cell(args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterator[Product]:
    call = bind(("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh"), args, kwargs)
    hidden = call["hx"][0] if isinstance(call["hx"], (list, tuple)) else call["hx"]
    parts = (call["w_ih"], call["input"], call.get("b_ih")), (call["w_hh"], hidden, call.get("b_hh"))
    for weight, x, bias in parts:
        rows = x.reshape(-1, x.shape[-1])
        yield _product(weight, rows, partial(_counted_in_cell, rows, keep), bias)


def _counted_in_cell(rows: Tensor, keep: RowMask | None) -> Tensor:
    if keep is not None and keep.by_tokens:
        raise DataError(f"a cell is called step by step, so padding among the steps cannot be identified; {REMEDY}")
    every = rows.new_ones(len(rows), dtype=torch.bool)
    return every if keep is None else keep.at(every.shape).to(rows.device)


KINDS_OF_RECURRENCE = (
    Recurrent("lstm", _lstm_step, (torch.lstm,), (torch.lstm_cell,)),
    Recurrent("gru", _gru_step, (torch.gru,), (torch.gru_cell,)),
    Recurrent("rnn_tanh", _plain_step(torch.tanh), (torch.rnn_tanh,), (torch.rnn_tanh_cell,)),
    Recurrent("rnn_relu", _plain_step(torch.relu), (torch.rnn_relu,), (torch.rnn_relu_cell,)),
)
