"""Settings as frozen dataclasses that check themselves. No torch here: the command line reads them for its help."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from verifix.errors import UsageError


def whole(value: object) -> bool:
    """Whether a value is a whole number, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_seed(seed: object) -> None:
    """Check a seed.

    Parameters
    ----------
    seed
        The seed.

    Raises
    ------
    UsageError
        If it is no whole number that fits.
    """
    if not whole(seed) or not 0 <= seed < 2**32:  # type: ignore[operator]
        raise UsageError(f"seed is {seed!r}; it must be a whole number from 0 to 4294967295")


def check_limit(limit: object) -> None:
    """Refuse a limit that is neither None nor a whole number of 1 or more."""
    if limit is not None and (not whole(limit) or limit < 1):  # type: ignore[operator]
        raise UsageError(f"limit is {limit!r}; it must be a whole number of samples, 1 or more")


def patterns(value: Sequence[str] | None) -> list[str] | None:
    """Return patterns as a list; a bare text, which is a sequence too, stays as it is and is refused later."""
    return value if value is None or isinstance(value, str) else list(value)  # type: ignore[return-value]


def split_list(value: list[str] | str | None) -> list[str] | None:
    """Split a text at its commas; a list or None stays as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def names_in_file(path: str, flag: str = "--classes") -> list[str] | None:
    """Return the lines of a file of class names or shares, or None if the text is a list of them itself."""
    if Path(path).is_file():
        try:
            return [line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read for {flag} ({error}); write UTF-8, one class per line") from None
    if path.endswith(".txt"):
        raise UsageError(f"{path} does not exist; {flag} takes a list separated by commas, or a file of it")
    return None


def numbers(name: str, value: list[float] | str | None) -> list[float]:
    """Return a list of numbers, which may be given as a text with commas; None is an empty one."""
    try:
        found = [float(part) for part in (split_list(value) if isinstance(value, str) else value) or []]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(math.isfinite(number) for number in found):
        raise UsageError(f"{name} is {value!r}; give numbers separated by commas, such as 0.491,0.482,0.447")
    return found


TRUST_METHODS = ("low-loss", "low-curvature", "confident")
"""Ways to rank samples by how far their given label is to be trusted; see `verifix.trust`."""

TRUSTED_COUNT = 1000
"""How many samples are trusted unless the user says."""


def check_trust(method: str, count: object) -> None:
    """Check the settings of `verifix.trust` that can be checked without data.

    Parameters
    ----------
    method
        How to rank.
    count
        How many samples to pick.

    Raises
    ------
    UsageError
        If the method is unknown, or the count is no whole number of 2 or more.
    """
    if method not in TRUST_METHODS:
        raise UsageError(f"method is {method!r}; it must be one of {', '.join(map(repr, TRUST_METHODS))}")
    if not whole(count) or count < 2:  # type: ignore[operator]
        raise UsageError(f"count is {count!r}; it must be a whole number of 2 or more")


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
