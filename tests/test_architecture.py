from __future__ import annotations

import ast
import graphlib
import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import verifix
from verifix.cli.options import CorrectCommand
from verifix.options import CorrectOptions

SOURCE = Path(verifix.__file__).parent

ORDER = [
    "errors",
    "losses",
    "storage",
    "moments",
    "settings",
    "options",
    "progress",
    "model",
    "capture",
    "projection",
    "recipe",
    "evaluation",
    "correction",
    "preflight",
    "algorithm",
    "io",
    "proof",
    "selection",
    "review",
    "report",
    "inspection",
    "integrations",
    "cli",
    "__main__",
]
"""Packages and modules at the root; each imports only from itself and from those before it."""

MODULES = {".".join(path.relative_to(SOURCE).with_suffix("").parts): path for path in SOURCE.rglob("*.py")}


def imports_of(module: str) -> set[str]:
    """Modules of verifix that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("verifix."):
            base = node.module.removeprefix("verifix.")
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= inner & MODULES.keys() or {base if base in MODULES else f"{base}.__init__"}
    return found


def test_the_order_names_every_package_and_module_at_the_root():
    assert sorted(ORDER) == sorted({module.partition(".")[0] for module in MODULES} - {"__init__"})
    assert sum("." not in module for module in MODULES) <= 14
    assert sum((SOURCE / name).is_dir() for name in ORDER) <= 11


@pytest.mark.parametrize("room", ORDER)
def test_imports_go_one_way(room):
    allowed = ORDER[: ORDER.index(room) + 1]
    for module in MODULES:
        if module.partition(".")[0] == room:
            assert {other.partition(".")[0] for other in imports_of(module)} <= set(allowed), module


def test_no_modules_import_each_other():
    list(graphlib.TopologicalSorter({module: imports_of(module) for module in MODULES}).static_order())


def test_every_package_says_what_it_is_for():
    for folder in {path.parent for path in MODULES.values()} - {SOURCE}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_the_mathematics_knows_nothing_of_models():
    assert imports_of("moments") == set()
    assert imports_of("projection") == {"errors", "moments"}
    assert imports_of("losses") == {"errors"}
    assert imports_of("recipe.decision") == {"recipe.candidates"}


def run_python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return result.stdout


def test_importing_verifix_pulls_in_nothing_but_torch_numpy_and_the_lazy_loader():
    code = (
        "import sys; before = set(sys.modules); import torch, numpy, lazy_loader; known = set(sys.modules)\n"
        "import verifix; print(sorted({m.split('.')[0] for m in set(sys.modules) - known} - {'verifix'}))\n"
        "from verifix import correct; print('cuda', torch.cuda.is_initialized())"
    )
    assert run_python(code).splitlines() == ["[]", "cuda False"]
    assert "torch" not in run_python("import sys, verifix; print(*{m.split('.')[0] for m in sys.modules})").split()


def test_help_answers_without_torch():
    for arguments in (["--help"], ["correct", "--help"], ["--version"]):
        code = (
            "import sys\nfrom verifix.cli.main import main\n"
            f"try:\n    main({arguments!r})\nexcept SystemExit as e:\n    assert not e.code\n"
            "print('torch' in sys.modules)"
        )
        assert run_python(code).splitlines()[-1] == "False"


def test_every_public_name_is_there_and_in_dir():
    for name in verifix.__all__:
        assert getattr(verifix, name).__doc__
    assert dir(verifix) == sorted(verifix.__all__)
    with pytest.raises(AttributeError, match="No verifix attribute nonsense"):
        _ = verifix.nonsense


def test_the_settings_of_the_command_line_are_those_of_the_call():
    parameters = inspect.signature(verifix.correct).parameters
    only_python = {"score", "loss", "forward", "stored_as", "spectra", "classes"}
    call = {
        name: p.default
        for name, p in parameters.items()
        if p.kind is inspect.Parameter.KEYWORD_ONLY and name not in only_python
    }
    assert {f.name: f.default for f in fields(CorrectOptions)} == call
    command = {f.name: f.default for f in fields(CorrectCommand)}
    assert command.pop("verified_from") is None  # the command line asks for it, unless --trusted answers
    assert {name: command[name] for name in call if name != "verified_from"} == {
        name: default for name, default in call.items() if name != "verified_from"
    }


def test_one_module_knows_of_other_processes():
    told = re.compile(r"torch\.distributed|torch import distributed")
    users = {module for module, path in MODULES.items() if told.search(path.read_text())}
    assert users == {"model.ranks", "model.wrappers"}  # the latter knows the names of sharded modules


def test_functions_stay_small():
    lengths = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lengths.append((body[-1].end_lineno - body[0].lineno + 1 if body else 0, path.name, node.name))
    assert max(lengths)[0] <= 60, max(lengths)
    assert sorted(lengths)[len(lengths) // 2][0] <= 14
