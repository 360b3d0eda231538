"""verifix: correct a trained classifier that learned from wrong labels, from a small verified set."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifix.algorithm import correct
    from verifix.capture.kinds import KINDS, LayerKind, Product, RowMask, kept_rows, register
    from verifix.capture.saved_moments import SavedMoments
    from verifix.correction import Correction, LayerReport
    from verifix.errors import CheckpointError, DataError, NoLayersError, UsageError, VerifixError
    from verifix.evaluation.comparison import Comparison, class_weights, compare
    from verifix.inspection import collect_moments, inspect
    from verifix.proof import Proof, prove
    from verifix.selection.trusted import Trusted, trust

__all__ = [
    "KINDS",
    "CheckpointError",
    "Comparison",
    "Correction",
    "DataError",
    "LayerKind",
    "LayerReport",
    "NoLayersError",
    "Product",
    "Proof",
    "RowMask",
    "SavedMoments",
    "Trusted",
    "UsageError",
    "VerifixError",
    "class_weights",
    "collect_moments",
    "compare",
    "correct",
    "inspect",
    "kept_rows",
    "prove",
    "register",
    "trust",
]

_HOME = {
    "correct": "algorithm",
    "SavedMoments": "capture.saved_moments",
    "Comparison": "evaluation.comparison",
    "class_weights": "evaluation.comparison",
    "compare": "evaluation.comparison",
    "Correction": "correction",
    "LayerReport": "correction",
    "CheckpointError": "errors",
    "DataError": "errors",
    "NoLayersError": "errors",
    "UsageError": "errors",
    "VerifixError": "errors",
    "KINDS": "capture.kinds",
    "LayerKind": "capture.kinds",
    "Product": "capture.kinds",
    "RowMask": "capture.kinds",
    "kept_rows": "capture.kinds",
    "register": "capture.kinds",
    "Proof": "proof",
    "prove": "proof",
    "Trusted": "selection.trusted",
    "trust": "selection.trusted",
    "collect_moments": "inspection",
    "inspect": "inspection",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import verifix`` costs nothing."""
    if name in _HOME:
        return getattr(importlib.import_module(f"verifix.{_HOME[name]}"), name)
    raise AttributeError(f"module 'verifix' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
