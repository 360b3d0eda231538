"""The rivals: methods that correct a trained network, all on the same samples and with the same tuning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from benchmarks.methods.base import Case, Method
from benchmarks.methods.cuts import TaskSpace
from benchmarks.methods.finetune import FineTuning
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
        Makes it from a case; or a recipe of the tool. What `benchmarks.methods.base.answered` takes.
    title
        Its name in a table.
    source
        The paper that it comes from; empty if there is none.
    """

    make: Callable[[Case], Method] | str
    title: str
    source: str = ""


METHODS: Mapping[str, Entry] = {
    "nothing": Entry(Nothing, "no change"),
    "verifix": Entry("verifix", "verifix", "Saha and Roy, 2024 (arXiv 2403.08618)"),
    "auto": Entry("auto", "verifix, all stages"),
    "finetuning": Entry(FineTuning, "fine-tuning", "Kingma and Ba, ICLR 2015 (arXiv 1412.6980)"),
    "head_refit": Entry(
        HeadRefit, "last-layer retraining", "Kirichenko, Izmailov and Wilson, ICLR 2023 (arXiv 2204.02937)"
    ),
    "recalibration": Entry(
        Recalibration, "BatchNorm recalibration", "Schneider et al., NeurIPS 2020 (arXiv 2006.16971)"
    ),
    "knn": Entry(NearestNeighbours, "nearest neighbours", "Cover and Hart, IEEE Trans. Inf. Theory 13, 1967"),
    "rog": Entry(RobustGenerative, "robust generative head (RoG)", "Lee et al., ICML 2019 (arXiv 1901.11300)"),
    "ssd": Entry(
        SelectiveDampening, "selective synaptic dampening (SSD)", "Foster et al., AAAI 2024 (arXiv 2308.07707)"
    ),
    "scrub": Entry(Scrub, "SCRUB", "Kurmanji et al., NeurIPS 2023 (arXiv 2302.09880)"),
    "cuts": Entry(TaskSpace, "CUTS", "Mozafari et al., 2025 (arXiv 2511.18660)"),
    "truncation": Entry(Truncation, "hard spectral truncation", "arXiv 2603.02293, withdrawn by its author"),
    "published": Entry(Published, "the paper as published", "Saha and Roy, 2024 (arXiv 2403.08618)"),
    "published_oracle": Entry(PublishedOracle, "the same with its oracle", "Saha and Roy, 2024 (arXiv 2403.08618)"),
    "retrain": Entry(Retrain, "trained anew on true labels"),
}
"""All methods, in the order of a table; the last two know what no user knows."""
