"""Settings of `verifix select`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from verifix.options import RunOptions
from verifix.settings import DATA, MAIN, OUTPUT, READS, WRITES, one_of, require, whole

STRATEGIES = ("random", "balanced", "uncertain", "suspect", "spread")
"""Ways to select samples."""

DEFAULT_STRATEGY = "spread"
"""What "auto" selects by, beside the random part. docs/selection.md names it; a test compares them."""


@dataclass(frozen=True, kw_only=True)
class SelectOptions(RunOptions):
    """Which samples to verify next."""

    strategy: Annotated[Literal["auto", "random", "balanced", "uncertain", "suspect", "spread"], MAIN] = "auto"
    """How samples are selected beside the random part. "random": at random, so that all of them prove a gain.
    "balanced": at random, the same number of each given class. "uncertain": where the model's two best answers are
    nearly as probable. "suspect": where cleanlab's label quality of the given label is lowest (needs
    verifix[label-errors]). "spread": far apart in what the last layer sees, by k-means. "auto": the one of
    these that docs/selection.md names as the default."""
    count: Annotated[int, MAIN] = 200
    """How many samples to verify."""
    random_share: Annotated[float, MAIN] = 0.5
    """Share of them that is drawn at random from all samples, whatever the strategy: only these estimate how many
    labels are wrong, and prove a gain."""
    verified: Annotated[str | None, DATA, READS] = None
    """What was decided in earlier rounds: a file of verifix review. Samples that are in it are not selected again, and
    its random part is continued."""
    scores: Annotated[str | None, OUTPUT, WRITES] = None
    """A new folder for the scores of all samples: one Parquet file per process. What a killed run has scored is kept in
    it until then, and the same call goes on from there. Not for "random" and "balanced", which score nothing."""

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        super().__post_init__()
        words = ("auto", *STRATEGIES)
        require(one_of(self.strategy, *words), "strategy", self.strategy, f"one of {', '.join(map(repr, words))}")
        require(whole(self.count, 1), "count", self.count, "a whole number of samples, 1 or more")
        share = self.random_share
        number = isinstance(share, (int, float)) and not isinstance(share, bool) and 0 < share <= 1
        require(number, "random_share", share, "a number above 0 and up to 1, such as 0.5")
        require(self.scores is None or self.scored, "scores", self.scores, f"omitted if strategy is {self.strategy!r}")

    @property
    def by(self) -> str:
        """The strategy, which "auto" leaves to `DEFAULT_STRATEGY`."""
        return DEFAULT_STRATEGY if self.strategy == "auto" else self.strategy

    @property
    def scored(self) -> bool:
        """Whether the model is run over all samples."""
        return self.by not in ("random", "balanced")

    @property
    def drawn_count(self) -> int:
        """How many samples are drawn at random."""
        return self.count if self.by == "random" else math.ceil(self.count * self.random_share - 1e-9)
