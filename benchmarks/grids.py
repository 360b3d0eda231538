"""Which cells there are: the comparisons that docs/rivals.md shows, each a product of a few lists."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.cells import Cell
from benchmarks.methods import METHODS

NAMED = ("nothing", "verifix", "auto", "finetuning", "head_refit", "recalibration")
"""The six that run where a network is large."""

LONG = ("nothing", "auto", "finetuning", "finetuning_long")
"""Those of the table on longer fine-tuning."""

WITH_TRAINING_INPUTS = (
    *("nothing", "verifix", "auto", "auto_unlabelled", "auto_noisy"),
    *("finetuning", "finetuning_long", "pseudo_labels", "fixmatch", "colur"),
    *("head_refit", "rog", "scrub", "published", "retrain"),
)
"""Those of the tables in which methods may use the training inputs as well."""

LATER = ("finetuning_long", "auto_unlabelled", "auto_noisy", "pseudo_labels", "fixmatch", "colur")
"""In tables of their own only."""

ALL = tuple(name for name in METHODS if name not in LATER)


@dataclass(frozen=True)
class Grid:
    """One comparison.

    Attributes
    ----------
    title
        What it shows.
    task, architecture
        As in `benchmarks.tasks`.
    noises
        Pairs of noise and rate.
    sizes
        Numbers of verified samples.
    seeds
        Seeds.
    methods
        Names of methods.
    """

    title: str
    task: str
    architecture: str
    noises: Sequence[tuple[str, float]]
    sizes: Sequence[int]
    seeds: Sequence[int]
    methods: Sequence[str] = ALL

    def cells(self) -> Iterator[Cell]:
        """Yield its cells, those of one network after one another."""
        products = itertools.product(self.noises, self.seeds, self.sizes, self.methods)
        for (noise, rate), seed, size, method in products:
            yield Cell(self.task, self.architecture, noise, rate, size, seed, method)


KINDS = (("symmetric", 0.3), ("asymmetric", 0.4), ("hierarchical", 0.3), ("instance", 0.3))
SPIRALS = (("symmetric", 0.2), ("asymmetric", 0.4), ("instance", 0.2))
FIVE = (10, 11, 12, 13, 14)
"""Seeds that the tool was not developed on; 10 to 12 were looked at when the two ways of fine-tuning began to race."""
FRESH = (43, 44, 45, 46, 47)
"""Seeds that nothing was developed on, and that no table showed while the tool took its form."""

GRIDS: dict[str, Sequence[Grid]] = {
    "digits": (
        Grid("Kinds of noise", "digits", "mlp", KINDS, (200,), FIVE),
        Grid("Number of verified samples", "digits", "mlp", (("symmetric", 0.3),), (50, 100, 200, 400), FIVE),
        Grid(
            "Share of wrong labels",
            "digits",
            "mlp",
            tuple(("symmetric", rate) for rate in (0.0, 0.1, 0.2, 0.3, 0.45, 0.6)),
            (200,),
            FIVE,
        ),
        Grid("Fine-tuning for longer", "digits", "mlp", KINDS, (200,), FIVE, LONG),
        Grid(
            "Training inputs, by number of verified samples",
            "digits",
            "mlp",
            (("symmetric", 0.3),),
            (50, 100, 200),
            FRESH,
            WITH_TRAINING_INPUTS,
        ),
        Grid("Training inputs, by kind of noise", "digits", "mlp", KINDS, (200,), FRESH, WITH_TRAINING_INPUTS),
        Grid("A small vision transformer", "digits", "vit", (("symmetric", 0.3), ("instance", 0.3)), (200,), FIVE),
    ),
    "spirals": (Grid("Kinds of noise", "spirals", "mlp", (("symmetric", 0.0), *SPIRALS), (200,), FIVE),),
    "texts": (Grid("A small BERT", "texts", "bert", (("symmetric", 0.3), ("asymmetric", 0.4)), (200,), FIVE),),
    "cifar10": (
        Grid("VGG11-BN", "cifar10", "vgg11_bn", (("symmetric", 0.25),), (200, 1000), (0,), (*NAMED, "auto_unlabelled")),
        Grid("Human labels", "cifar10", "resnet", (("human", 0.172),), (50, 100, 200, 500, 1000), (0,)),
        Grid("Symmetric noise", "cifar10", "resnet", (("symmetric", 0.3),), (200, 1000), (0,)),
    ),
}
"""Task → its comparisons."""
