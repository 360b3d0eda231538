"""What a model's outputs mean: logits, log-probabilities, probabilities or percent; and how to read them as logits.

All else in this package works with logits. Whatever runs a model or reads predictions asks here, so that the same
numbers mean the same everywhere. What is not clear is refused, and the setting `outputs` decides it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from verifix.errors import DataError
from verifix.model.borrow import borrowed
from verifix.model.gradients import differentiable
from verifix.model.graph import last_operation
from verifix.model.nonfinite import first_tensor
from verifix.model.predict import SeveralOutputsError, logits_in, predict
from verifix.model.run import Forward, run_model, to_device
from verifix.model.samples import Samples
from verifix.model.several_outputs import picking

Meaning = Literal["logits", "log-probabilities", "probabilities", "percent"]

MEANINGS: tuple[Meaning, ...] = get_args(Meaning)

REMEDY = f"say what they are with outputs= (--outputs): {', '.join(MEANINGS[:-1])} or {MEANINGS[-1]}"

SPREAD = 64
"""How many samples are looked at where the last operation of a model does not decide; they are spread over all."""

DECIMALS = 6
"""Up to how many decimals rounding is looked for."""

SLACK = 1e-3
"""How far the sum of a row of probabilities may be from 1 without rounding to decimals: float16 loses as much."""

BFLOAT16_SLACK = 8e-3
"""The same for numbers that are multiples of bfloat16's steps."""

EXPECTED: dict[str, Meaning] = {
    "sigmoid": "probabilities",
    "softmax": "probabilities",
    "log-softmax": "log-probabilities",
    "log-sigmoid": "log-probabilities",
}


def meaning_of(values: Tensor, operation: str | None = None, what: str = "the model's outputs") -> Meaning:
    """Tell what outputs mean.

    Parameters
    ----------
    values
        float64 ``[n, outputs]``, finite.
    operation
        What they were made by; see `last_operation`. None if that is not known.
    what
        What they are, for messages.

    Returns
    -------
    Meaning
        What they mean.

    Raises
    ------
    DataError
        If it is not clear, or the operation says one thing and the values another.
    """
    if values.shape[1] == 1:
        return _meaning_of_one(values, operation, what)
    meaning = _meaning_of_rows(values)
    wanted = EXPECTED.get(operation or "")
    if wanted is not None and meaning != wanted:
        total = "their exponentials sum" if wanted == "log-probabilities" else "they sum"
        raise DataError(
            f"{what} come from a {operation}, but {total} to {_total(values, wanted):.4g} for one sample where 1 is "
            f"wanted (one {operation} per class, or over another axis?); {REMEDY}"
        )
    if operation == "linear":
        if meaning in ("probabilities", "percent"):
            raise DataError(
                f"{what} sum to {_total(values, meaning):.4g} for every sample, as {meaning} do, but come from a layer "
                f"that normalises nothing; {REMEDY}"
            )
        return "logits"
    if meaning is None:
        raise DataError(
            f"{what} all lie between 0 and 1, but do not sum to 1 ({_total(values, 'probabilities'):.4g} for one "
            f"sample): they may be one sigmoid per class, or rounded; {REMEDY}"
        )
    return meaning


def _meaning_of_one(values: Tensor, operation: str | None, what: str) -> Meaning:
    """Tell what one output per sample means, which only its operation or numbers on both sides of 0 can show."""
    if operation in EXPECTED and operation != "softmax":
        return EXPECTED[operation]
    low, high = float(values.min()), float(values.max())
    if operation == "linear" or (low < 0 < high and operation is None):
        return "logits"
    if operation is not None:
        raise DataError(f"{what} are one number per sample from a {operation}, which is always 1 or 0; {REMEDY}")
    raise DataError(
        f"{what} are one number per sample, from {low:.4g} to {high:.4g}, which may be logits, probabilities or "
        f"percent; {REMEDY}"
    )


def _meaning_of_rows(values: Tensor) -> Meaning | None:
    """Tell what rows of two numbers or more look like; None if they may be probabilities and do not sum to 1."""
    if _sums_to(values, 1):
        return "probabilities"
    if _sums_to(values, 100):
        return "percent"
    if bool((values <= SLACK).all() and (values.logsumexp(dim=1).abs() <= _slack(values)).all()):
        return "log-probabilities"
    return None if bool(((values >= 0) & (values <= 1)).all()) else "logits"


def _sums_to(values: Tensor, total: int) -> bool:
    """Whether numbers are not negative and each row sums to a total, as far as rounding allows."""
    # A number that was rounded is off by half a unit at most, and one that was rounded up is above 0 afterwards.
    slack, half = total * _slack(values), _unit(values, total) / 2
    sums, above = values.sum(dim=1), (values > 0).sum(dim=1)
    fits = (sums <= total + above * half + slack) & (sums >= total - values.shape[1] * half - slack)
    return bool(fits.all() and (values >= -slack).all() and (values <= total + slack).all())


def _unit(values: Tensor, total: int) -> float:
    """Return the unit that numbers are whole multiples of, such as 0.001; 0 if there is none, or no rounding."""
    for decimals in range(DECIMALS + 1):
        scaled = values * 10.0**decimals
        error = float(torch.finfo(torch.float32).eps) * scaled.abs() + 1e-9
        if bool(((scaled - scaled.round()).abs() <= error).all()):
            return 0.0 if decimals == 0 and total == 1 else 10.0**-decimals
    return 0.0


def _slack(values: Tensor) -> float:
    return BFLOAT16_SLACK if torch.equal(values.bfloat16().to(values.dtype), values) else SLACK


def _total(values: Tensor, meaning: Meaning) -> float:
    """Return the sum of the row that is farthest from what it should be."""
    sums = (values.exp() if meaning == "log-probabilities" else values).sum(dim=1)
    return float(sums[(sums - (100 if meaning == "percent" else 1)).abs().argmax()])


def to_logits(values: Tensor, meaning: Meaning, *, one: bool) -> Tensor:
    """Read outputs as logits; gradients flow through.

    Parameters
    ----------
    values
        The outputs, of any shape.
    meaning
        What they mean.
    one
        Whether there is one output per sample, the probability of class 1: then logit = log p − log(1 − p).

    Returns
    -------
    Tensor
        The same shape, in float64 where the device has it; logits as they are. Probabilities of 0 and 1, at which
        these are infinite, give way to the nearest numbers that their dtype tells from 0 and 1.

    Raises
    ------
    DataError
        If a number is no such probability.
    """
    if meaning == "logits" or (meaning == "log-probabilities" and not one):
        return values
    precise = values if values.device.type == "mps" else values.double()
    slack = BFLOAT16_SLACK if values.dtype == torch.bfloat16 else SLACK
    tiny, eps = torch.finfo(values.dtype).tiny, torch.finfo(values.dtype).eps / 2
    if meaning == "log-probabilities":
        _check_range(precise, -float("inf"), slack, meaning)
        logs = precise.clamp(max=-eps)
        return logs - torch.log(-torch.expm1(logs))
    whole = 100 if meaning == "percent" else 1
    _check_range(precise, -slack * whole, (1 + slack) * whole, meaning)
    p = precise / whole
    if not one:
        return p.clamp(min=tiny).log()
    return p.clamp(min=tiny).log() - (1 - p).clamp(min=eps).log()


def _check_range(values: Tensor, low: float, high: float, meaning: Meaning) -> None:
    wrong = values[(values < low) | (values > high)]
    if len(wrong):
        allowed = {"percent": "from 0 to 100", "probabilities": "from 0 to 1"}.get(meaning, "0 or below")
        raise DataError(f"outputs= says {meaning}, but an output is {float(wrong[0]):.4g}; they must be {allowed}")


def reading(samples: Samples, meaning: Meaning, outputs: int) -> Samples:
    """Return samples with which a model's outputs are read as logits.

    Parameters
    ----------
    samples
        The samples.
    meaning
        What the outputs of the model mean.
    outputs
        How many there are per sample.

    Returns
    -------
    Samples
        The same samples.
    """
    if meaning == "logits":
        return replace(samples, outputs=meaning)

    def forward(model: nn.Module, inputs: Any) -> Any:
        output = first_tensor(run_model(model, inputs, own))
        return to_logits(output, meaning, one=outputs == 1) if isinstance(output, Tensor) else output

    own: Forward | None = samples.forward
    return replace(samples, forward=forward, outputs=meaning)


def understood(model: nn.Module, samples: Samples, device: torch.device, wanted: str) -> tuple[Samples, str]:
    """Find out what a model's outputs mean, once, with its original weights.

    Parameters
    ----------
    model
        The model, on `device`; it is borrowed.
    samples
        The samples.
    device
        Where the model is.
    wanted
        The setting `outputs`.

    Returns
    -------
    samples : Samples
        The same, with which outputs are read as logits.
    remark : str
        What the outputs are read as, for the user; empty for logits.

    Raises
    ------
    DataError
        If it is not clear.
    """
    if samples.outputs is not None:
        return samples, ""
    try:
        return _understood(model, samples, device, wanted)
    except SeveralOutputsError:
        samples, which = picking(model, samples, device)
        samples, remark = _understood(model, samples, device, wanted)
        return samples, " ".join(filter(None, (which, remark)))


def _understood(model: nn.Module, samples: Samples, device: torch.device, wanted: str) -> tuple[Samples, str]:
    """Find it out for a model that returns one tensor, or refuse several."""
    if wanted == "logits":
        with borrowed(model):
            predict(model, samples, [0], 1, device)
        return reading(samples, "logits", 0), ""
    with borrowed(model):
        few = _spread(samples, min(2, samples.batch_size or 2))
        values, operation = predict(model, samples, few, len(few), device), _operation(model, samples, few, device)
        if wanted == "auto" and operation == "linear" and _meaning_of_rows(values) in (None, "logits"):
            return reading(samples, "logits", values.shape[1]), ""  # the common case, for which two samples are enough
        many = _spread(samples, SPREAD)
        values = predict(model, samples, many, min(samples.batch_size or 16, 16), device)
    meaning: Meaning = meaning_of(values, operation) if wanted == "auto" else wanted  # type: ignore[assignment]
    to_logits(values, meaning, one=values.shape[1] == 1)  # refuses numbers that cannot be what they are said to be
    said = [remark(meaning, operation), _saturated(values, meaning)]
    return reading(samples, meaning, values.shape[1]), " ".join(filter(None, said))


def remark(meaning: str, operation: str | None = None, what: str = "Outputs") -> str:
    """Return a sentence about what outputs are read as; empty for logits, which are what is expected."""
    if meaning == "logits":
        return ""
    return f"{what} are read as {meaning}{f' ({operation})' if operation in EXPECTED else ''}."


def _saturated(values: Tensor, meaning: Meaning) -> str:
    """Say how many single probabilities are 0 or 1, and have no finite logit; empty if none is."""
    if values.shape[1] > 1 or meaning not in ("probabilities", "percent"):
        return ""
    count = int(((values <= 0) | (values >= (100 if meaning == "percent" else 1))).sum())
    about = "with no finite logit; the nearest number that has one is taken instead"
    return f"{count} of the {len(values)} outputs looked at are exactly 0 or 1, {about}." if count else ""


def _operation(model: nn.Module, samples: Samples, few: Sequence[int], device: torch.device) -> str | None:
    """Run a few samples with gradients, and return by what the outputs were made; None if that is not known."""
    (batch,) = samples.batches(few, len(few))
    parameters = dict(model.named_parameters())
    wanted = {name: p for name, p in parameters.items() if p.is_floating_point() and not p.is_inference()}
    try:
        with differentiable(parameters, wanted):
            output = run_model(model, to_device(batch.inputs, device), samples.forward)
            return last_operation(logits_in(output, len(batch.labels)))
    except (DataError, RuntimeError):  # a model that runs only without gradients: its values decide
        return None


def _spread(samples: Samples, count: int) -> list[int]:
    """Return places spread over all samples, which may be sorted by class."""
    count = min(count, len(samples))
    return [i * len(samples) // count for i in range(count)]
