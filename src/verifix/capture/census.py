"""What was seen of each parameter while a model ran, and what becomes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from torch import Tensor, nn

from verifix.capture.layer import Bias, Layer
from verifix.capture.padding import RunningBatch
from verifix.capture.parameters import ParameterIndex, extent, partly_shared
from verifix.capture.selection import Selection
from verifix.capture.skip_reasons import MULTIPLY_NOT, explained, fixed_reasons
from verifix.errors import one_line

T = TypeVar("T")
Status = Literal["corrected", "skipped", "unused"]


@dataclass(frozen=True)
class Account:
    """What became of one parameter of two or more dimensions.

    Attributes
    ----------
    parameter
        Qualified name.
    kind
        Layer kinds that use it; empty if none does.
    status
        "corrected", "skipped" or "unused".
    reason
        Why it was skipped.
    layers
        The layers in it.
    size
        Number of elements.
    multiplies
        Whether it multiplies activations, rather than being looked up, added or put beside them.
    """

    parameter: str
    kind: str
    status: Status
    reason: str
    layers: tuple[Layer, ...]
    size: int = 0
    multiplies: bool = True

    @property
    def fate(self) -> str:
        """The status, or "not_multiplied" for what is skipped and would not have counted."""
        return self.status if self.multiplies or self.status != "skipped" else "not_multiplied"


@dataclass
class Census:
    """Everything that was seen of a model's parameters while it ran.

    Attributes
    ----------
    layers
        Every layer seen, in the order of first use.
    used_by
        For each parameter, names of functions without an adapter that used it.
    batch
        Which rows of the batch that runs count.
    index
        The parameters of the model.
    failures
        For each parameter whose rows could not be read, why.
    calls
        How often each parameter has met inputs that no sample has a part in, in the batch that runs.
    trial
        1 and 2 for batches of one sample that are run to see what comes with every batch; 0 for those that count.
    untraced
        Whether, in the batch that runs, numbers of samples have become Python's own.
    constants, confirmed
        Inputs that no sample seemed to have a part in, by the parameters that they met: those of the first trial, and
        those that came again in the second.
    buffers
        Sizes of the buffers that have met samples in products, by name.
    added
        What has been added to each layer's outputs, call by call; None for calls that added no parameter.
    shared
        Layers that had the same inputs as another one in the trial, and the first of these; see `Sharing`.
    finish
        To be called after each batch that has run without an error.
    reading
        Whether samples are being read, so that nothing that is called belongs to the model; see `aside`.
    """

    layers: list[Layer] = field(default_factory=list)
    used_by: dict[str, set[str]] = field(default_factory=dict)
    batch: RunningBatch = field(default_factory=RunningBatch)
    index: ParameterIndex | None = None
    failures: dict[str, str] = field(default_factory=dict)
    calls: dict[tuple[str, ...], int] = field(default_factory=dict)
    trial: int = 0
    untraced: bool = False
    constants: dict[tuple[str, ...], list[list[Tensor]]] = field(default_factory=dict)
    confirmed: dict[tuple[str, ...], list[list[Tensor]]] = field(default_factory=dict)
    buffers: dict[str, int] = field(default_factory=dict)
    added: dict[Layer, set[Bias | None]] = field(default_factory=dict)
    shared: dict[Layer, Layer] = field(default_factory=dict)
    finish: Callable[[], None] = lambda: None
    reading: bool = False

    @property
    def biases(self) -> dict[Layer, Bias]:
        """The bias of each layer that has one of its own: always the same, and no other layer's."""
        owners = Counter(bias for found in self.added.values() for bias in found)
        return {
            layer: bias
            for layer, (bias, *others) in self.added.items()
            if bias is not None and not others and owners[bias] == 1
        }

    def aside(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield batches of samples; how they are read is not watched, which is no use of the model's."""
        reader = iter(batches)
        while True:
            self.reading = True
            try:
                batch = next(reader)
            except StopIteration:
                return
            finally:
                self.reading = False
            yield batch

    def begin(self, samples: int, trial: int = 0) -> None:
        """Get ready for the next batch, of this many samples; `trial` is 1 or 2 if it does not count."""
        if trial != 2:
            self.constants = dict(self.confirmed)
        self.trial, self.untraced = trial, False
        self.batch.begin(samples)
        self.calls.clear()
        if self.index is not None:
            self.index.forget_normed()

    def note_use(self, parameter: str, function: str) -> None:
        """Remember that a function without an adapter used a parameter."""
        self.used_by.setdefault(parameter, set()).add(function)

    def note_failure(self, parameters: Iterable[str], kind: str, error: Exception) -> None:
        """Remember parameters whose rows could not be read, although the model itself runs."""
        for name in parameters:
            self.failures[name] = f"rows of {kind} cannot be read ({type(error).__name__}: {one_line(error, 100)})"

    def accounts(self, model: nn.Module, selection: Selection) -> list[Account]:
        """Account for every parameter of two or more dimensions, in the model's own order.

        Parameters
        ----------
        model
            The model that ran.
        selection
            What the user includes and excludes.

        Returns
        -------
        list of Account
            One entry per parameter; tied parameters have one entry, under their first name.

        Raises
        ------
        UsageError
            If an include or exclude pattern matches no layer.
        """
        selection.check(self.layers)
        index = ParameterIndex(model)
        fixed = fixed_reasons(model) | partly_shared(index.parameters)
        names = [name for name, p in index.parameters.items() if p.ndim >= 2 or self._layers_of(name)]
        return [self._account(name, index.parameters, fixed, selection) for name in names]

    def _layers_of(self, name: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.parameter == name)

    def _account(
        self, name: str, parameters: Mapping[str, Tensor], fixed: Mapping[str, str], selection: Selection
    ) -> Account:
        size = parameters[name].numel()
        scaled = next((layer.parameter for layer in self.layers if layer.scale == name), None)
        if scaled is not None:  # it has no rows of its own, and the same fate
            return replace(self._account(scaled, parameters, fixed, selection), parameter=name, layers=(), size=size)
        layers = self._layers_of(name)
        kind = ", ".join(dict.fromkeys(layer.kind for layer in layers))
        reason = (
            fixed.get(name)
            or self.failures.get(name)
            or self._reason_to_skip(name, parameters[name], layers, selection)
        )
        multiplies = bool(layers) or not self.used_by.get(name, set()) <= MULTIPLY_NOT
        status: Status = "skipped" if reason else "corrected" if layers else "unused"
        return Account(name, kind, status, reason, layers, size, multiplies)

    def _reason_to_skip(self, name: str, parameter: Tensor, layers: tuple[Layer, ...], selection: Selection) -> str:
        others = self.used_by.get(name, set())
        if others:
            return f"{'also ' if layers else ''}{explained(others)}"
        if layers and not parameter.is_floating_point():
            return f"{parameter.dtype} weights are not supported"
        if any(0 in layer.stride for layer in layers):
            return "used through an expanded view"
        spans = sorted(layer.span for layer in layers)
        if spans and spans[-1][1] > extent(parameter):
            return "used together with its neighbours in memory"
        if any(end > start for (_, end), (start, _) in zip(spans, spans[1:], strict=False)):
            return "used through overlapping views"
        return "" if all(map(selection.wants, layers)) else "not selected"
