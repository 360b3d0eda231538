"""What result.json and the report hold beside the correction and its proof: examples, spectra, files, versions."""

from __future__ import annotations

import base64
import io
import platform
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from verifix.cli.options import CorrectCommand
from verifix.correction import Correction
from verifix.io.data.preparation import Preparation
from verifix.losses import probabilities
from verifix.model.samples import Samples
from verifix.proof import Proof
from verifix.report.result import Example, FileRead, Spectrum
from verifix.storage.atomic import file_digest

SHOWN = 24
"""How many examples of either outcome a report shows."""

LONGEST = 400
"""Characters of a text that a report shows."""

WIDEST = 160
"""Pixels of the longer side of a picture that a report shows; larger ones are scaled down."""


def examples(
    proof: Proof, samples: Samples, preparation: Preparation, picture: Callable[[int], str | None] | None = None
) -> tuple[Example, ...]:
    """Return the samples that the correction set right and those that it broke, the surest mistakes first.

    Parameters
    ----------
    proof
        What was predicted before and after.
    samples
        The samples that the proof counts its indices in.
    preparation
        How they became inputs.
    picture
        What to show of the sample with an index, if it is no text; by default, its input, if that is a picture.

    Returns
    -------
    tuple of Example
        Up to `SHOWN` of either outcome, with a picture or a text.
    """
    drawn = picture or (lambda index: _picture(samples, index, preparation))
    before, after = (probabilities(logits).max(dim=1) for logits in (proof.before, proof.after))
    right_before, right_after = before.indices == proof.labels, after.indices == proof.labels

    def example(place: int, outcome: Literal["fixed", "broken"]) -> Example:
        index = proof.indices[place]
        text = samples.text(index)
        return Example(
            label=int(proof.labels[place]),
            before=int(before.indices[place]),
            after=int(after.indices[place]),
            outcome=outcome,
            index=index,
            name=samples.where(index) or None,
            confidence_before=float(before.values[place]),
            confidence_after=float(after.values[place]),
            text=text if text is None or len(text) <= LONGEST else f"{text[:LONGEST]}…",
            image=None if text is not None else drawn(index),
        )

    broken, fixed = (
        _surest(right_before & ~right_after, after.values),
        _surest(~right_before & right_after, before.values),
    )
    return (*(example(place, "broken") for place in broken), *(example(place, "fixed") for place in fixed))


def _surest(which: Tensor, sureness: Tensor) -> list[int]:
    """Return the places of the first few that are marked, the surest wrong answers first."""
    places = which.nonzero().flatten()
    order: list[int] = places[sureness[places].argsort(descending=True, stable=True)][:SHOWN].tolist()
    return order


def _picture(samples: Samples, index: int, preparation: Preparation) -> str | None:
    """Return an input ``[channels, height, width]`` as a PNG in a data URL; None if it is no picture."""
    x = next(samples.batches([index], 1)).inputs
    if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1] not in (1, 3) or min(x.shape[2:]) < 2:
        return None
    pixels = x[0].detach().float().cpu()
    if len(preparation.mean) == len(pixels):
        mean, std = (torch.tensor(numbers)[:, None, None] for numbers in (preparation.mean, preparation.std))
        pixels = pixels * std + mean
    elif pixels.min() < 0 or pixels.max() > 1:  # numbers of an unknown scale
        pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp(min=1e-12)
    return picture_of(pixels)


def picture_of(pixels: Tensor) -> str:
    """Return pixels ``[1 or 3, height, width]`` from 0 to 1 as a PNG in a data URL."""
    array = (pixels.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(array[:, :, 0] if len(pixels) == 1 else array)
    picture.thumbnail((WIDEST, WIDEST))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def task_of(samples: Samples) -> str | None:
    """Return what a model of these inputs does, as the Hugging Face Hub calls it; None if they do not tell."""
    x = next(samples.batches([0], 1)).inputs
    if isinstance(x, Mapping):
        told = (
            ("pixel_values", "image"),
            ("input_values", "audio"),
            ("input_features", "audio"),
            ("input_ids", "text"),
        )
        return next((f"{kind}-classification" for key, kind in told if key in x), None)
    if not isinstance(x, Tensor):
        return None
    if x.is_floating_point():
        return {2: "tabular-classification", 4: "image-classification"}.get(x.ndim)
    return "text-classification" if x.ndim == 2 else None


def spectra(correction: Correction) -> dict[str, Spectrum]:
    """Return the spectrum of every corrected layer and the α it had in the end, by parameter name."""
    found: dict[str, Spectrum] = {}
    for name, values in correction.spectra.items():
        alpha = correction.alpha
        for numbers in correction.layer_strengths.values():  # a later stage may have given the layer its own
            alpha = numbers.get(name, {}).get("alpha", alpha)
        found[name] = Spectrum(values, alpha)
    return found


def files_read(command: CorrectCommand) -> dict[str, FileRead]:
    """Return what a command reads, with the SHA-256 of each file; None for a folder."""
    paths = {
        name: getattr(command, name)
        for name in ("checkpoint", "verified", "trusted", "unlabelled", "noisy", "test", "moments")
    }
    return {name: FileRead(str(path), _digest(path)) for name, path in paths.items() if path is not None}


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version()} | {name: version(name) for name in ("verifix", "torch", "numpy")}


def peak_memory() -> int | None:
    """Return the most memory that this process has held, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if platform.system() == "Darwin" else 1024 * used


def spelled_command(command: CorrectCommand) -> str:
    """Return the command line that repeats a run: every setting that is not the default one."""
    return shlex.join(["verifix", "correct", *_flags(command)])


def _flags(command: CorrectCommand) -> Iterator[str]:
    for field in fields(command):
        value = getattr(command, field.name)
        if field.default is not MISSING and value == field.default:
            continue
        flag = field.name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{'' if value else 'no-'}{flag}"
        elif field.name == "model_kwargs":
            yield from (f"--{flag}", *value)
        else:
            yield from (f"--{flag}", ",".join(map(str, value)) if isinstance(value, list) else str(value))


def _digest(path: str) -> str | None:
    return file_digest(Path(path)) if Path(path).is_file() else None
