"""The rivals: methods that correct a trained network, all on the same samples and with the same tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.methods.base import Rival
from benchmarks.methods.cuts import TaskSpace
from benchmarks.methods.finetune import FineTuning, LongFineTuning
from benchmarks.methods.head_refit import HeadRefit
from benchmarks.methods.knn import NearestNeighbours
from benchmarks.methods.nothing import Nothing
from benchmarks.methods.published import Published, PublishedOracle
from benchmarks.methods.recalibrate import Recalibration
from benchmarks.methods.retrain import Retrain
from benchmarks.methods.rog import RobustGenerative
from benchmarks.methods.scrub import Scrub
from benchmarks.methods.ssd import SelectiveDampening
from benchmarks.methods.truncation import Truncation


@dataclass(frozen=True)
class Entry:
    """A method.

    Attributes
    ----------
    make
        Its class; or a recipe of the tool. What `benchmarks.methods.base.answered` takes.
    title
        Its name in a table.
    """

    make: type[Rival] | str
    title: str


METHODS: Mapping[str, Entry] = {
    "nothing": Entry(Nothing, "no change"),
    "verifix": Entry("verifix", "verifix"),
    "auto": Entry("auto", "verifix, all stages"),
    "finetuning": Entry(FineTuning, "fine-tuning"),
    "finetuning_long": Entry(LongFineTuning, "fine-tuning, up to four times as long"),
    "head_refit": Entry(HeadRefit, "last-layer retraining"),
    "recalibration": Entry(Recalibration, "BatchNorm recalibration"),
    "knn": Entry(NearestNeighbours, "nearest neighbours"),
    "rog": Entry(RobustGenerative, "robust generative head (RoG)"),
    "ssd": Entry(SelectiveDampening, "selective synaptic dampening (SSD)"),
    "scrub": Entry(Scrub, "SCRUB"),
    "cuts": Entry(TaskSpace, "CUTS"),
    "truncation": Entry(Truncation, "hard spectral truncation"),
    "published": Entry(Published, "the paper's method as published"),
    "published_oracle": Entry(PublishedOracle, "the paper's method with its oracle"),
    "retrain": Entry(Retrain, "retrained on true labels"),
}
"""All methods, in the order of a table; the last two know what no user knows. Their modules name the papers."""
