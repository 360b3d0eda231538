from __future__ import annotations

import os
import warnings
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    if (SHARED / "networks").is_dir():
        return
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs ../shared beside the checkout"))


def pytest_configure():
    settings.register_profile("short", max_examples=20, deadline=None, derandomize=True)
    settings.register_profile("long", max_examples=3000, deadline=None, print_blob=True)
    settings.load_profile("long" if os.environ.get("VERIFIX_FUZZ") == "long" else "short")
    torch.set_num_threads(1)  # the cases are small; threads would only wait for each other


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def lend():
    """Make contexts on models that stay borrowed until the test ends."""
    from tests.stage_cases import context_of
    from verifix.model.borrow import borrowed

    with ExitStack() as stack:

        def make(model, *samples, **settings):
            stack.enter_context(borrowed(model))
            return context_of(model, *samples, **settings)

        yield make


@pytest.fixture(scope="session")
def vision():
    """Make torchvision and timm importable beside a CPU build of torch, for which the C++ operators are missing."""
    from benchmarks.coverage_models import declare_missing_operators

    library = declare_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import timm
        import torchvision

        yield torchvision, timm
    del library


@pytest.fixture(scope="session")
def shared() -> Path:
    return SHARED
