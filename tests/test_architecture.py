from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import verifix
from verifix.options import CorrectCommand, CorrectOptions

SOURCE = Path(verifix.__file__).parent

ORDER = [
    "errors",
    "options.checks",
    "options.correct",
    "options.trust",
    "options.inputs",
    "options.commands",
    "options",
    "progress",
    "forms",
    "staging",
    "files",
    "layers.masks",
    "layers.base",
    "layers.linear",
    "layers.convolution",
    "layers.attention",
    "layers.recurrent",
    "layers",
    "padding",
    "reasons",
    "borrow",
    "finite",
    "constants",
    "capture",
    "moments",
    "projection",
    "samples",
    "collect",
    "scoring",
    "answers",
    "measures",
    "evidence",
    "comparison",
    "probe",
    "gradients",
    "strength",
    "stages.base",
    "stages.project",
    "stages.layerwise",
    "stages.recalibrate",
    "stages.heads",
    "stages.refit",
    "stages.linear_probe",
    "stages.finetune",
    "stages",
    "budget",
    "correction",
    "provenance",
    "guards",
    "setup",
    "crossfit",
    "algorithm",
    "proof",
    "survey",
    "io",
    "io.libraries",
    "select",
    "io.transformers_models",
    "io.models",
    "io.state",
    "io.fit",
    "io.folders",
    "io.layouts",
    "io.parts",
    "io.records",
    "io.checkpoints",
    "io.restoring",
    "io.notes",
    "io.limit",
    "io.labels",
    "io.preprocessing",
    "io.images",
    "io.text",
    "io.arrays",
    "io.tables",
    "io.manifests",
    "io.saved_datasets",
    "io.shards",
    "io.natural_noise",
    "io.cifar_n",
    "io.datasets",
    "io.predictions",
    "report.result",
    "report.words",
    "report.charts",
    "report.proof",
    "report.course",
    "report.page",
    "report.card",
    "report",
    "demo.outcome",
    "demo.training",
    "demo.pictures",
    "demo.digits",
    "demo.spiral",
    "demo",
    "commands.common",
    "commands.record",
    "commands.correct",
    "commands.score",
    "commands.compare",
    "commands.inspect",
    "commands.undo",
    "commands",
    "cli",
    "__main__",
]
"""Every module; each imports only from modules before it."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__") or "__init__"


MODULES = {module_of(p): p for p in SOURCE.rglob("*.py") if p.name != "__init__.py" or p.parent != SOURCE}


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("verifix"):
            base = node.module.removeprefix("verifix").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found.add(inner if inner in MODULES else base)
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("verifix.") for a in node.names if a.name.startswith("verifix.")}
    return found


def test_the_order_names_every_module():
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_from_modules_before_it(module):
    allowed = set(ORDER[: ORDER.index(module)])
    assert imports_of(MODULES[module]) <= allowed


def test_the_mathematics_knows_nothing_of_models():
    assert imports_of(MODULES["moments"]) == set()
    assert imports_of(MODULES["projection"]) == {"errors", "moments"}
    assert imports_of(MODULES["strength"]) == set()


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return result.stdout


def test_importing_verifix_pulls_in_nothing_but_torch_and_numpy():
    code = (
        "import sys; before = set(sys.modules); import torch, numpy; known = set(sys.modules)\n"
        "import verifix; print(sorted({m.split('.')[0] for m in set(sys.modules) - known} - {'verifix'}))\n"
        "from verifix import correct; print('cuda', torch.cuda.is_initialized())"
    )
    assert run_python(code).splitlines() == ["[]", "cuda False"]
    assert "torch" not in run_python("import sys, verifix; print(*{m.split('.')[0] for m in sys.modules})").split()


def test_help_answers_without_torch():
    for arguments in (["--help"], ["correct", "--help"], ["--version"]):
        code = (
            "import sys\nfrom verifix.cli import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit as e:\n    assert not e.code\n"
            "print('torch' in sys.modules)"
        )
        assert run_python(code).splitlines()[-1] == "False"


def test_every_public_name_is_there_and_in_dir():
    for name in verifix.__all__:
        assert getattr(verifix, name).__doc__
    assert dir(verifix) == sorted(verifix.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = verifix.nonsense


def test_the_settings_of_the_command_line_are_those_of_the_call():
    parameters = inspect.signature(verifix.correct).parameters
    callables = {"score", "loss", "forward", "stored_as"}
    call = {
        name: p.default
        for name, p in parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and name not in callables
    }
    assert {f.name: f.default for f in fields(CorrectOptions)} == call
    command = {f.name: f.default for f in fields(CorrectCommand)}
    assert command.pop("verified_from") is None  # the command line asks for it, unless --trusted answers
    assert {name: command[name] for name in call if name != "verified_from"} == {
        name: default for name, default in call.items() if name != "verified_from"
    }


def test_functions_stay_small():
    lengths = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lengths.append((body[-1].end_lineno - body[0].lineno + 1 if body else 0, path.name, node.name))
    assert max(lengths)[0] <= 60, max(lengths)
    assert sorted(lengths)[len(lengths) // 2][0] <= 14
