"""How to correct."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from verifix.errors import UsageError
from verifix.options.checks import check_seed, patterns, whole

VERIFIED_FROM = ("unseen", "training", "trusted")
"""What samples can be, the best first: new to the model, known to it, or not verified by anybody."""

UNITS = {"": 1, "s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
"""Units of time, in seconds."""


@dataclass(frozen=True)
class CorrectOptions:
    """How to correct.

    Attributes
    ----------
    alpha
        Strength of the projection: "auto" lets the verified samples choose; a number means exactly that projection.
    recipe
        Stages to run: "auto" is all of them, as far as the verified samples support each one (with alpha given as a
        number it is that projection alone); "verifix" is the paper's method; or names of stages joined by commas,
        such as project,refit.
    budget
        Time that choosing may take, such as 90s, 5min or 1h; stages that do not fit are left out.
    include
        Correct only layers that match one of these parameter-name globs or kinds.
    exclude
        Leave alone layers that match one of these parameter-name globs or kinds.
    folds
        Folds of the cross-fitting that chooses strengths.
    seed
        Seed of the folds.
    device
        Where to compute; "auto" is where the model is.
    batch_size
        Samples per batch; "auto" starts at 64, or at the DataLoader's own, and halves when memory runs out.
    verified_from
        Whether the model has been trained on the verified samples ("training") or not ("unseen"); "trusted" if nobody
        verified them, and they were picked because their label is probably right.
    moments
        A moments file of earlier verified samples, to be counted as well.
    padding
        Whether token ids that contain the model's pad id need a mask of the padding; --no-padding if they need none.
    check_labels
        Whether to stop if the predictions fit another order of the labels far better, or one input has two labels;
        --no-check-labels if they are right all the same.
    progress
        Show progress.
    """

    alpha: float | Literal["auto"] = "auto"
    recipe: str = "auto"
    budget: str | float | None = None
    include: list[str] | None = None
    exclude: list[str] | None = None
    folds: int = 5
    seed: int = 0
    device: str = "auto"
    batch_size: int | Literal["auto"] = "auto"
    verified_from: Literal["unseen", "training", "trusted"] = "unseen"
    moments: str | None = None
    padding: bool = True
    check_labels: bool = True
    progress: bool = True

    def __post_init__(self) -> None:
        """Check what can be checked without a model."""
        number = isinstance(self.alpha, (int, float)) and not isinstance(self.alpha, bool)
        if self.alpha != "auto" and not (number and 0 < self.alpha < math.inf):
            raise UsageError(f"alpha is {self.alpha!r}; it must be a finite number above 0, or 'auto'")
        if not isinstance(self.check_labels, bool):
            raise UsageError(f"check_labels is {self.check_labels!r}; it must be True or False")
        if not whole(self.folds) or self.folds < 2:
            raise UsageError(f"folds is {self.folds!r}; it must be a whole number of 2 or more")
        check_seed(self.seed)
        if self.batch_size != "auto" and (not whole(self.batch_size) or self.batch_size < 1):
            raise UsageError(f"batch_size is {self.batch_size!r}; it must be a whole number of 1 or more, or 'auto'")
        if self.verified_from not in VERIFIED_FROM:
            raise UsageError(f"verified_from is {self.verified_from!r}; it must be 'unseen', 'training' or 'trusted'")
        if not self.budget_seconds > 0:
            raise UsageError(f"budget is {self.budget!r}; it must be a time above 0, such as 5min")
        for name in ("include", "exclude"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, list) and all(isinstance(p, str) for p in value)):
                raise UsageError(f"{name} is {value!r}; it must be a list of patterns, such as ['head.*', 'conv2d']")

    @classmethod
    def of_arguments(cls, arguments: Mapping[str, Any]) -> CorrectOptions:
        """Take the settings out of the arguments of `verifix.correct`, which may also be objects where these are text.

        Parameters
        ----------
        arguments
            The arguments by name; others are left out.

        Returns
        -------
        CorrectOptions
            The settings, checked.
        """
        own = {field.name: arguments[field.name] for field in fields(cls)}
        moments = own["moments"]
        own["moments"] = str(moments) if isinstance(moments, (str, Path)) else None
        own |= {name: patterns(own[name]) for name in ("include", "exclude")}
        return cls(**own | {"device": str(own["device"])})

    @property
    def minimum_samples(self) -> int:
        """How many verified samples these settings need: few leave nothing to choose from."""
        return max(50, 2 * self.folds) if self.choosing else 2

    @property
    def stages(self) -> str:
        """The recipe to run: a given alpha alone means the projection alone."""
        return "verifix" if self.recipe == "auto" and self.alpha != "auto" else self.recipe

    @property
    def choosing(self) -> bool:
        """Whether any stage's strength is left for the verified samples to choose."""
        return self.alpha == "auto" or self.stages not in ("verifix", "project")

    @property
    def budget_seconds(self) -> float:
        """The budget in seconds; infinite if none was given."""
        if self.budget is None:
            return math.inf
        if isinstance(self.budget, (int, float)) and not isinstance(self.budget, bool):
            return float(self.budget)
        found = re.fullmatch(r"([\d.]+)\s*([a-z]*)", str(self.budget).strip().lower())
        try:
            number, unit = found.groups()  # type: ignore[union-attr]
            return float(number) * UNITS[unit]
        except (AttributeError, ValueError, KeyError):
            raise UsageError(f"budget is {self.budget!r}; give a time such as 90s, 5min or 1h") from None
