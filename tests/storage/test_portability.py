"""What Windows lacks is not needed."""

from __future__ import annotations

import subprocess
import sys

CORRECT = """
import os, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None  # an import of it fails, as on Windows
for name in ("chown", "posix_fadvise", "geteuid"):
    delattr(os, name)

import torch, verifix
from verifix.storage import transaction

transaction.exchange = lambda *_: False
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
before = {name: value.clone() for name, value in model.state_dict().items()}
correction = verifix.correct(model, (torch.randn(60, 4), torch.arange(60) % 2), alpha=100.0, progress=False)
for _ in range(2):
    correction.save("c.safetensors", force=True)
loaded = verifix.Correction.load("c.safetensors")
loaded.undo_(loaded.apply_(model))
assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
assert os.listdir() == ["c.safetensors"]
print(*loaded.corrected)
"""


def test_a_system_without_the_modules_of_unix_imports_corrects_and_saves(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", CORRECT], capture_output=True, text=True, timeout=240, check=False, cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["0.weight", "2.weight"]
