"""Every piece of Python in the docs runs, on small networks that have learned wrong labels, or another test runs it."""

from __future__ import annotations

import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import verifix
import verifix.report
from tests.cases import small_data
from tests.documented import PAGES
from tests.stage_cases import memorised

ELSEWHERE = {
    "README.md": "tests/test_docs.py",
    "extending.md": "tests/test_docs.py",
    "integrations.md": "tests/integrations/test_integrations_docs.py",
    "many-machines.md": "tests/rank_cases.py, in two processes",
    "tutorial.md": "tools/tutorial.py, as make tutorial",
}
"""Pages whose Python another test runs."""

SUBSTITUTIONS = (
    ("count=1000", "count=60"),  # of 120 samples
    ("count=300", "count=70"),
    (
        'model, verified, verified_from="unseen", drawn="mixed"',
        'model, (x[selection.indices], y[selection.indices]), verified_from="unseen", drawn="mixed"',
    ),
    ("[0.9, 0.08, 0.02]", "[0.5, 0.3, 0.2]"),
)
"""What stands in place of what a page says: counts for small sets, and samples that a person would have labelled."""

BLOCKS = {page.name: re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.S) for page in PAGES}


def test_every_page_with_python_is_run_here_or_named():
    assert set(ELSEWHERE) <= {name for name, blocks in BLOCKS.items() if blocks}
    text = "\n".join(block for blocks in BLOCKS.values() for block in blocks)
    assert [given for given, _ in SUBSTITUTIONS if given not in text] == []


def _told(model, x, y) -> dict:
    """Return a correction and its proof, of which the result lies in a file."""
    correction = verifix.correct(model, x, y, alpha=30.0, verified_from="unseen", drawn="random", progress=False)
    proof = correction.prove()
    verifix.report.write_result("result.json", verifix.report.result_of(correction, proof))
    return {"correction": correction, "proof": proof}


@pytest.mark.slow
@pytest.mark.usefixtures("short_training", "vision")
@pytest.mark.parametrize("name", [name for name, blocks in BLOCKS.items() if blocks and name not in ELSEWHERE])
def test_the_python_of_a_page_runs(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    x, y = small_data(120)
    model = memorised(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)), x, y)
    threads = torch.get_num_threads()
    fixed = verifix.correct(model, x, y, alpha=30.0, verified_from="unseen", progress=False).model
    logits = [network(x).detach() for network in (model, fixed)]
    names = {
        "verifix": verifix, "torch": torch, "model": model, "verified": (x, y), "labels": y, "inputs": x,
        "train_inputs": torch.randn(80, *x.shape[1:]), "data": (x, y), "more_samples": (x + 0.01, y),
        "train_loader": DataLoader(TensorDataset(torch.randn(80, *x.shape[1:]), torch.arange(80) % 3)),
        "model_before": model, "model_after": fixed, "logits_before": logits[0], "logits_after": logits[1],
        "before": logits[0], "after": logits[1], "patients": [f"p{i // 2}" for i in range(120)],
        "noisy_training_set": (x, y), "x": x, "y": y,
    }  # fmt: skip
    if name == "report.md":
        names |= _told(model, x, y)
    try:
        for block in BLOCKS[name]:
            for given, taken in SUBSTITUTIONS:
                block = block.replace(given, taken)  # noqa: PLW2901
            exec(block, names)
    finally:
        torch.set_num_threads(threads)
    assert "Traceback" not in capsys.readouterr().err
