"""Let torchvision be imported where its operators cannot be loaded: here, and in the commands that tutorials run.

The package index has torchvision for CUDA. Beside torch for CPUs its C++ operators are missing; the tutorials use none
of them. conf.py puts this folder on the path of Python.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from pathlib import Path


class Declaring(MetaPathFinder):
    """Declare the operators that torchvision looks for, just before it is imported."""

    def find_spec(self, name: str, *_: object) -> None:
        """Find nothing; the usual finders go on."""
        if name == "torchvision":
            sys.meta_path.remove(self)
            KEPT.append(declared())


def declared() -> object:
    """Load the operators of torchvision, or declare them; they exist as long as what is returned."""
    import torch

    spec = PathFinder.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        return torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library


KEPT: list[object] = []

sys.meta_path.insert(0, Declaring())
