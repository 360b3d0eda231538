"""A stage that the model's module registers, through the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from tests.checkpoint_cases import arguments, some_net, write_world

STAGE = """

import verifix


class Soften(verifix.Stage):
    name = "soften"
    about = "Scales all biases that layers have."

    def candidates(self):
        return verifix.Listed((0.5, 0.9))

    def fit(self, strength):
        names = [bias.parameter for bias in self.context.run.collected.biases.values()]
        return {name: self.context.writable(name).mul_(strength) for name in names}


verifix.register_stage(Soften)
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name("verifix"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, cwd=folder)


def test_a_stage_that_the_models_module_registers_runs_and_is_reported(tmp_path):
    write_world(tmp_path)
    with (tmp_path / "net.py").open("a") as file:
        file.write(STAGE)
    torch.save(some_net().state_dict(), tmp_path / "net.pt")
    argv = [*arguments("net.pt", "fixed.pt"), "--alpha", "auto", "--recipe"]
    shown = run(tmp_path, *argv, "soften", "--report", "page.html", "--result", "result.json")
    assert shown.returncode in (0, 3), shown.stderr
    choice = json.loads((tmp_path / "result.json").read_text())["choices"]["soften"]
    assert [point["strength"] for point in choice["points"]] == [None, 0.5, 0.9]
    assert f"  soften: {choice['reason']}" in shown.stdout
    page = (tmp_path / "page.html").read_text()
    assert "soften" in page
    assert "Scales all biases that layers have." in page
    failed = run(tmp_path, *argv, "project,softer")
    assert failed.returncode == 2
    assert "recipe is 'project,softer'" in failed.stderr
    assert "distill, soften, each once" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
