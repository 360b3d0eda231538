"""verifix: correct a trained classifier that learned from wrong labels, from a small verified set."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from verifix.algorithm import correct
    from verifix.collect import SavedMoments
    from verifix.comparison import Comparison, class_weights, compare
    from verifix.correction import Correction, LayerReport
    from verifix.errors import CheckpointError, DataError, NoLayersError, UsageError, VerifixError
    from verifix.layers import KINDS, LayerKind, Product, RowMask, kept_rows, register
    from verifix.proof import Proof, prove
    from verifix.select import Trusted, trust
    from verifix.survey import collect_moments, inspect

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
    "SavedMoments": "collect",
    "Comparison": "comparison",
    "class_weights": "comparison",
    "compare": "comparison",
    "Correction": "correction",
    "LayerReport": "correction",
    "CheckpointError": "errors",
    "DataError": "errors",
    "NoLayersError": "errors",
    "UsageError": "errors",
    "VerifixError": "errors",
    "KINDS": "layers",
    "LayerKind": "layers",
    "Product": "layers",
    "RowMask": "layers",
    "kept_rows": "layers",
    "register": "layers",
    "Proof": "proof",
    "prove": "proof",
    "Trusted": "select",
    "trust": "select",
    "collect_moments": "survey",
    "inspect": "survey",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used, so that ``import verifix`` costs nothing."""
    if name in _HOME:
        return getattr(importlib.import_module(f"verifix.{_HOME[name]}"), name)
    raise AttributeError(f"module 'verifix' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return __all__
