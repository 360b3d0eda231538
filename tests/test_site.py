"""The check of the links of the built site, and what the tutorials promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from tools.links import faults

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("tutorial_*.py"))

GOOD = '<a href="#here" id="here"></a><a href="deep/b.html#there"></a><a href="https://example.org"></a>'


@pytest.fixture
def site(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.html").write_text('<p id="there"><a href="../a.html">back</a><img src="../a%20b.png">')
    (tmp_path / "a b.png").write_bytes(b"")
    (tmp_path / "a.html").write_text(GOOD)
    return tmp_path


def test_links_that_lead_somewhere_are_fine(site):
    assert list(faults(site)) == []


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ('<a href="c.html">', "c.html leads nowhere"),
        ('<a href="#nowhere">', "#nowhere leads nowhere"),
        ('<a href="deep/b.html#here">', "deep/b.html#here leads nowhere"),
        ('<img src="c.png">', "c.png leads nowhere"),
        ('<script src="https://example.org/x.js">', "loads https://example.org/x.js"),
        ('<link href="//example.org/x.css">', "loads //example.org/x.css"),
    ],
)
def test_links_that_lead_nowhere_are_told(site, more, fault):
    (site / "a.html").write_text(GOOD + more)
    assert list(faults(site)) == [f"a.html: {fault}"]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorials_keep_samples_apart_and_show_a_proof(path):
    text = path.read_text(encoding="utf-8")
    title = ast.get_docstring(ast.parse(text)).split("\n")
    assert set(title[1]) == {"="}
    assert "unseen" in text  # the origin of the samples is stated
    assert "verifix.compare(" in text or "--test test" in text or "nested cross-fitting" in text
    assert "--force" not in "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#"))


def test_every_picture_has_a_name_of_its_own():
    """Without one, all pictures of a page in Markdown would be the first of them."""
    page = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
    names, drawn = (re.findall(pattern, page, re.M) for pattern in (r":filename-prefix: (\w+)", r"^ +(\w+)\(\)$"))
    assert len(set(names)) == len(names) == page.count(".. plot::")
    assert names == drawn
