"""The wheel, the sdist, and what the package index shows of them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build the sdist, and the wheel from the sdist, with what is installed."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    (wheel,), (sdist,) = out.glob("*.whl"), out.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def metadata(built):
    with zipfile.ZipFile(built[0]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_bytes(wheel.read(name))


def test_the_wheel_holds_every_file_of_the_package(built):
    with zipfile.ZipFile(built[0]) as wheel:
        found = {name for name in wheel.namelist() if name.startswith("verifix/")}
    source = ROOT / "src"
    there = {path.relative_to(source).as_posix() for path in (source / "verifix").rglob("*") if path.is_file()}
    assert found == {name for name in there if "__pycache__" not in name}


def test_the_sdist_leaves_out_measurements_and_holds_what_makes_the_docs(built):
    with tarfile.open(built[1]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert not {name for name in names if name.startswith(("benchmarks/results", "docs/gallery"))}
    assert {"docs/conf.py", "docs/tutorials/tutorial_1_digits.py", "CITATION.cff", "constraints.txt"} <= names
    assert built[1].stat().st_size < 4 * 2**20


def test_the_wheel_runs_in_an_environment_of_its_own(built, tmp_path):
    """Install it where no other verifix is; the libraries are those of this environment."""
    venv.create(tmp_path / "clean", with_pip=False)
    (libraries,) = (tmp_path / "clean").glob("lib/python*/site-packages")
    with zipfile.ZipFile(built[0]) as wheel:
        wheel.extractall(libraries)
    (libraries / "others.pth").write_text(sysconfig.get_path("purelib"))  # without its .pth files
    python = tmp_path / "clean" / "bin" / "python"
    code = (
        "import torch, verifix, verifix.report; from importlib.metadata import version\n"
        "assert [getattr(verifix, name) for name in verifix.__all__]\n"
        "data = torch.randn(60, 4), torch.arange(60) % 2\n"
        "settings = {'alpha': 100.0, 'progress': False, 'check_inputs': False}\n"
        "correction = verifix.correct(torch.nn.Sequential(torch.nn.Linear(4, 2)), data, **settings)\n"
        "verifix.report.write_report('report.html', verifix.report.result_of(correction))\n"
        "print(verifix.__file__, version('verifix'))"
    )
    found = subprocess.run([python, "-I", "-c", code], check=True, capture_output=True, text=True, cwd=tmp_path)
    file, _ = found.stdout.splitlines()[-1].split()
    assert Path(file).is_relative_to(libraries)


def test_the_index_can_show_the_readme(metadata):
    from readme_renderer import markdown

    readme = metadata.get_payload()
    page = markdown.render(readme)
    assert page is not None
    assert readme.lstrip().startswith("# verifix")
    assert "## Limits" in readme
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert links
    assert all(link.startswith(("https://", "#user-content-")) for link in links)  # the latter are headings
    assert "The picture" not in page


def test_the_extra_all_holds_the_extras_of_users(metadata):
    wanted: dict[str, set[str]] = {}
    for line in metadata.get_all("Requires-Dist"):
        if found := re.fullmatch(r"(.*?); extra == '(.*)'", line):
            wanted.setdefault(found[2], set()).add(found[1])
    assert wanted.pop("all") == set().union(*(wanted[extra] for extra in wanted.keys() - {"dev", "docs"}))


def test_the_versions_agree(metadata):
    cited = re.search(r"^version: (.*)$", (ROOT / "CITATION.cff").read_text(), re.M)
    assert cited
    assert cited[1] == metadata["Version"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_fit_the_schema_of_github(path):
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", path]
    done = subprocess.run([*command, "-o", "json"], capture_output=True, text=True, timeout=60, check=False)
    assert json.loads(done.stdout)["status"] == "ok", done.stdout


def test_workflows_call_what_the_makefile_has():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    called = {name for path in WORKFLOWS for name in re.findall(r"run: make ([\w-]+)", path.read_text())}
    assert called
    assert called <= targets
