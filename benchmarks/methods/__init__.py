"""The rivals: methods that correct a trained network, all on the same samples and with the same tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from benchmarks.methods.base import Rival, Tool
from benchmarks.methods.colur import Colur
from benchmarks.methods.cuts import TaskSpace
from benchmarks.methods.finetune import FineTuning, LongFineTuning
from benchmarks.methods.fixmatch import FixMatch
from benchmarks.methods.head_refit import HeadRefit
from benchmarks.methods.knn import NearestNeighbours
from benchmarks.methods.nothing import Nothing
from benchmarks.methods.pseudo_labels import PseudoLabels
from benchmarks.methods.published import Published, PublishedOracle
from benchmarks.methods.recalibrate import Recalibration
from benchmarks.methods.retrain import Retrain
from benchmarks.methods.rog import RobustGenerative
from benchmarks.methods.scrub import Scrub
from benchmarks.methods.ssd import SelectiveDampening
from benchmarks.methods.truncation import Truncation


class Needs(Enum):
    """What a method needs, from the least to the most; each has what those before it have."""

    VERIFIED = "verified samples only"
    INPUTS = "training inputs"
    GIVEN = "training inputs and their given labels"
    CHECKED = "training samples whose labels were checked"
    TRUTH = "true labels of the training samples"

    def no_more_than(self, other: Needs) -> bool:
        """Tell whether who has what `other` needs can run this."""
        order = list(Needs)
        return order.index(self) <= order.index(other)


@dataclass(frozen=True)
class Entry:
    """A method.

    Attributes
    ----------
    make
        Its class; or the tool. What `benchmarks.methods.base.answered` takes.
    title
        Its name in a table.
    needs
        What it needs besides the network.
    """

    make: type[Rival] | Tool
    title: str
    needs: Needs = Needs.VERIFIED


METHODS: Mapping[str, Entry] = {
    "nothing": Entry(Nothing, "no change"),
    "verifix": Entry(Tool("verifix"), "verifix"),
    "auto": Entry(Tool("auto"), "verifix, all stages"),
    "auto_unlabelled": Entry(Tool("auto", unlabelled=True), "the same, with training inputs", Needs.INPUTS),
    "auto_noisy": Entry(Tool("auto", noisy=True), "the same, with the noisy training set", Needs.GIVEN),
    "finetuning": Entry(FineTuning, "fine-tuning"),
    "finetuning_long": Entry(LongFineTuning, "fine-tuning, up to four times as long"),
    "pseudo_labels": Entry(PseudoLabels, "fine-tuning with pseudo-labels", Needs.INPUTS),
    "fixmatch": Entry(FixMatch, "FixMatch", Needs.INPUTS),
    "colur": Entry(Colur, "COLUR", Needs.INPUTS),
    "head_refit": Entry(HeadRefit, "last-layer retraining"),
    "recalibration": Entry(Recalibration, "BatchNorm recalibration"),
    "knn": Entry(NearestNeighbours, "nearest neighbours"),
    "rog": Entry(RobustGenerative, "robust generative head (RoG)", Needs.GIVEN),
    "ssd": Entry(SelectiveDampening, "selective synaptic dampening (SSD)", Needs.CHECKED),
    "scrub": Entry(Scrub, "SCRUB", Needs.CHECKED),
    "cuts": Entry(TaskSpace, "CUTS", Needs.CHECKED),
    "truncation": Entry(Truncation, "hard spectral truncation", Needs.INPUTS),
    "published": Entry(Published, "the paper's method as published"),
    "published_oracle": Entry(PublishedOracle, "the paper's method with its oracle", Needs.TRUTH),
    "retrain": Entry(Retrain, "retrained on true labels", Needs.TRUTH),
}
"""All methods, in the order of a table; the last two know what no user knows. Their modules name the papers."""
