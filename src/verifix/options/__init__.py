"""Settings as frozen dataclasses that check themselves. No torch here: the command line reads them for its help."""

from verifix.options.checks import check_seed, patterns, split_list
from verifix.options.commands import (
    CompareCommand,
    CorrectCommand,
    DemoCommand,
    InspectCommand,
    ScoreCommand,
    UndoCommand,
)
from verifix.options.correct import VERIFIED_FROM, CorrectOptions
from verifix.options.inputs import DataOptions, ModelOptions, PredictOptions, WeightOptions
from verifix.options.trust import TRUST_METHODS, TRUSTED_COUNT, check_trust

__all__ = [
    "TRUSTED_COUNT",
    "TRUST_METHODS",
    "VERIFIED_FROM",
    "CompareCommand",
    "CorrectCommand",
    "CorrectOptions",
    "DataOptions",
    "DemoCommand",
    "InspectCommand",
    "ModelOptions",
    "PredictOptions",
    "ScoreCommand",
    "UndoCommand",
    "WeightOptions",
    "check_seed",
    "check_trust",
    "patterns",
    "split_list",
]
