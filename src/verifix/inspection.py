"""Show what a correction would change without correcting anything, and collect moments for later use."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from verifix.capture.census import Account
from verifix.capture.interceptor import intercepting
from verifix.capture.layer import Layer
from verifix.capture.memory_plan import Limits, MemoryPlan, planned, size_of
from verifix.capture.saved_moments import SavedMoments
from verifix.capture.selection import selection_of
from verifix.errors import UsageError
from verifix.model import ranks
from verifix.model.borrow import borrowed, check_model
from verifix.model.call import own_call
from verifix.model.clone import copy_model
from verifix.model.run import run_model, to_device
from verifix.model.samples import read_samples
from verifix.model.tensors import device_of, model_digest
from verifix.model.threads import threads_for
from verifix.model.work import work_of
from verifix.model.working_copy import working_copy
from verifix.model.wrappers import unwrapped
from verifix.options import CollectOptions, ForwardArguments, LayerOptions
from verifix.preflight import check_picked, collect_and_try
from verifix.settings import takes


@dataclass(frozen=True)
class Survey:
    """What a correction of a model would change.

    Attributes
    ----------
    accounts
        One per parameter of two or more dimensions.
    rows
        Input rows of each layer per sample.
    widths
        Groups and row width of each layer.
    shared
        Layers that see the same rows as another one, so that both share their moments; and which that is.
    """

    accounts: tuple[Account, ...]
    rows: dict[Layer, float]
    widths: dict[Layer, tuple[int, int]]
    shared: dict[Layer, Layer] = field(default_factory=dict)

    @property
    def layers(self) -> list[Layer]:
        """The layers that would be corrected."""
        return [layer for account in self.accounts if account.status == "corrected" for layer in account.layers]

    @property
    def share(self) -> float:
        """Share of the multiplied weights that would be corrected, in elements; 0 for a model without any.

        Multiplied weights are parameters of two or more dimensions that a function multiplies with activations.
        Parameters that are looked up (embeddings), added (positions) or unused do not count.
        """
        multiplied = self.sizes["corrected"] + self.sizes["skipped"]
        return self.sizes["corrected"] / multiplied if multiplied else 0.0

    @property
    def sizes(self) -> Counter[str]:
        """Elements of the parameters by what becomes of them; see `Account.fate`."""
        sizes = Counter[str]()
        for account in self.accounts:
            sizes[account.fate] += account.size
        return sizes

    def plan(self, samples: int, folds: int, limits: Limits | None = None) -> MemoryPlan:
        """Plan how the moments are collected, and estimate the memory that they take besides model and samples.

        Parameters
        ----------
        samples
            Verified samples.
        folds
            Folds of the cross-fitting; 1 if the strength is given.
        limits
            What the moments may take; no limit by default.

        Returns
        -------
        MemoryPlan
            Passes, and bytes.
        """
        sizes = {x: size_of(x, *self.widths[x], self.rows[x]) for x in self.rows if x in set(self.layers)}
        return planned(sizes, samples, folds, limits, self.shared)

    def memory(self, samples: int, folds: int) -> int:
        """Estimate the bytes that a correction without a limit holds besides model and samples; see `plan`."""
        plan = self.plan(samples, folds)
        return plan.at_once + plan.weights

    def as_dict(self) -> dict[str, Any]:
        """Return the survey as plain data."""
        entries = []
        for account in self.accounts:
            entry = {field.name: getattr(account, field.name) for field in fields(account) if field.name != "layers"}
            entry["rows_per_sample"] = sum(self.rows.get(layer, 0) for layer in account.layers)
            entries.append(entry)
        return {"corrected_share": self.share, "parameters": entries}


@dataclass(frozen=True, kw_only=True)
class InspectArguments(ForwardArguments, LayerOptions):
    """What `verifix.inspect` takes."""


@dataclass(frozen=True, kw_only=True)
class CollectArguments(ForwardArguments, CollectOptions):
    """What `verifix.collect_moments` takes."""


@takes(InspectArguments)
def inspect(model: nn.Module, inputs: Any, settings: InspectArguments) -> Survey:
    """Run one batch through the model and report what a correction would change.

    Parameters
    ----------
    model
        The model; it is not changed. A model that does not fit into memory may be on the meta device, without values.
    inputs
        A batch of inputs ``[n, ...]`` on any device, or a dictionary or tuple of tensors; their values do not matter.
    settings
        Each is a keyword argument.

    Returns
    -------
    Survey
        Every parameter of two or more dimensions: corrected, skipped and why, or unused.
    """
    rows: dict[Layer, float] = {}
    widths: dict[Layer, tuple[int, int]] = {}

    samples = _count(inputs)

    def sink(layer: Layer, x: Tensor) -> None:
        rows[layer] = rows.get(layer, 0) + x.shape[1] / samples
        widths[layer] = (x.shape[0], x.shape[2])

    model = unwrapped(model)
    check_model(model, may_be_meta=True)
    selection = selection_of(settings.include, settings.exclude)
    work = copy_model(model)
    with borrowed(work), _WithoutValues(), intercepting(work, sink, selection, masked=False) as census:
        census.begin(samples, trial=1)
        run_model(work, to_device(inputs, device_of(work)), settings.forward)
        census.finish()
    return Survey(tuple(census.accounts(work, selection)), rows, widths, census.shared)


class _WithoutValues(TorchDispatchMode):
    """Lets a model on the meta device ask for numbers, such as whether a mask is full: the answer is 1, or True."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return torch.ones((), dtype=args[0].dtype).item()
        return func(*args, **(kwargs or {}))


def _count(inputs: Any) -> int:
    """Return the number of samples in a batch: the size of the first axis of its first tensor."""
    first = next((leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim), None)
    if first is None:
        raise UsageError(f"inputs are a {type(inputs).__name__} without tensors; give a batch of inputs [n, ...]")
    return int(first.size(0))


@takes(CollectArguments)
def collect_moments(model: nn.Module, verified: Any, settings: CollectArguments) -> SavedMoments:
    """Collect the moments of verified samples, to save them and to add them to those of later samples.

    Parameters
    ----------
    model
        The uncorrected model; it is not changed.
    verified
        As in `verifix.correct`; labels are not used.
    settings
        Each is a keyword argument. With `verified_from`, `verifix.correct` refuses moments of samples that are worth
        less than its own; samples that `verifix.trust` picked are "trusted".

    Returns
    -------
    SavedMoments
        For `SavedMoments.save`, and for ``verifix.correct(..., moments=…)``.

    Raises
    ------
    UsageError
        If samples that `verifix.trust` picked are declared as "unseen" or "training".
    """
    model = unwrapped(model)
    check_model(model)
    with own_call(settings.seed):
        samples = read_samples(verified, settings.batch_size, settings.progress, settings.forward, settings.max_samples)
        origin = settings.verified_from or ("trusted" if samples.source.picked_by else None)
        check_picked(samples, origin)
        with working_copy(model, settings) as (work, where), threads_for(partial(work_of, work, samples, where)):
            digest = model_digest(work)
            ranks.check_alike({"weights": digest, "samples": samples.digests})
            collected, *_ = collect_and_try(work, where, samples, [range(len(samples))], settings)
    return SavedMoments({x: collected.folds[0][x] for x in collected.layers}, digest, collected.digests, None, origin)
