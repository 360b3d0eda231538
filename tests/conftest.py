from __future__ import annotations

import hashlib
import itertools
import os
import warnings
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from hypothesis import settings

SHARED = Path(__file__).resolve().parents[2] / "shared"


SAMPLED = 8
"""Of a table of slow cases, one in so many runs unless all are asked for."""


def pytest_addoption(parser):
    parser.addoption("--all-cases", action="store_true", help="run every case of the tables that are marked slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--all-cases"):
        kept = set(sampled([item.nodeid for item in items if "slow" in item.keywords]))
        left_out = [item for item in items if "slow" in item.keywords and item.nodeid not in kept]
        items[:] = [item for item in items if item not in left_out]
        config.hook.pytest_deselected(items=left_out)
    if (SHARED / "networks").is_dir():
        return
    for item in items:
        if "shared" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs ../shared beside the checkout"))


def sampled(cases):
    """From the names of all cases, yield one in `SAMPLED` of every test, always the same ones, and at least one."""
    tests = defaultdict(list)
    for case in cases:
        tests[case.partition("[")[0]].append(case)
    for of_test in tests.values():
        by_hash = sorted(of_test, key=lambda case: hashlib.sha256(case.encode()).digest())
        yield from by_hash[: -(-len(by_hash) // SAMPLED)]


def pytest_configure():
    settings.register_profile("short", max_examples=20, deadline=None, derandomize=True)
    settings.register_profile("long", max_examples=3000, deadline=None, print_blob=True)
    settings.load_profile("long" if os.environ.get("VERIFIX_FUZZ") == "long" else "short")
    torch.set_num_threads(1)  # the cases are small; threads would only wait for each other


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def asked_for(request):
    """Names of the cases that the tests of this module run with, as `name`: what is prepared for all is spared else."""
    own = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    return {item.callspec.params["name"] for item in own if "name" in item.callspec.params}


@pytest.fixture
def often(request):
    """How often to repeat what is slow: as often as said if all cases are asked for, else one in `SAMPLED` times."""
    return lambda times: times if request.config.getoption("--all-cases") else -(-times // SAMPLED)


@pytest.fixture
def short_training(monkeypatch):
    """Let the stage `finetune` end after a few steps, where a test is not about what it learns."""
    for bound in ("MOST", "FEWEST"):
        monkeypatch.setattr(f"verifix.recipe.stages.finetune.{bound}", 320)


@pytest.fixture
def recentre(monkeypatch):
    """Register a stage that changes buffers, `tests.stage_cases.Recentre`, until the test ends."""
    from tests.stage_cases import Recentre
    from verifix.recipe.stages import STAGES

    monkeypatch.setitem(STAGES, "recentre", Recentre)


@pytest.fixture
def keep_all(monkeypatch):
    """Keep every stage at its strongest, and the longest path, whatever the samples say."""
    from verifix.recipe.candidates import Grid
    from verifix.recipe.decision import Choice, Point

    def strongest(trials, candidates, *_):
        strength = candidates.highest if isinstance(candidates, Grid) else candidates.strengths[-1]
        return Choice(strength, (), "kept for the test")

    gains = itertools.count()

    def ever_better(*_):
        gain = float(next(gains))
        return Point(None, -gain, gain, 0.0, 1.0)

    monkeypatch.setattr("verifix.recipe.crossfit.choose_strength", strongest)
    monkeypatch.setattr("verifix.recipe.search.point_of", ever_better)


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
