"""The documentation site: ``make docs`` builds it into ``build/site``."""

import re
import sys
from importlib.metadata import version as installed
from pathlib import Path

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS))

project = "verifix"
author = "The verifix maintainers"
version = release = installed("verifix")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["tutorials/*.rst"]
root_doc = "index"

myst_heading_anchors = 3  # links to headings as GitHub makes them
myst_enable_extensions = ["colon_fence"]

default_role = "py:obj"  # `Correction` in a docstring is a link
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types stand in the docstrings
napoleon_google_docstring = False
nitpicky = True
nitpick_ignore_regex = [
    ("py:obj", r"[a-z_]+|verifix [a-z]+|verifix\.report|result\.json"),  # a parameter, a command, a file
    ("py:.*", r"(torch|nn|collections|pathlib|numpy|dataclasses)\..*|Tensor|ndarray|Path|callable"),  # other projects, whose sites are not fetched
    ("py:class", r"verifix\.(model\.sources\.Source|io\.data\.records\.Header|capture\.kinds\.lags\.Patches)"),  # internal
]

html_theme = "furo"
html_title = "verifix"
html_static_path = []


def home_links(app, relative_path, parent_docname, content):
    """Turn the links of a page of the repository's root into links of a page of docs/, which includes it."""
    content[0] = re.sub(r"\]\((?![a-z]+:|#)", "](../", content[0]).replace("](../docs/", "](")


def short_name(app, env, node, contnode):
    """Resolve the name of a class of verifix without its module, as docstrings use it, if only one has it."""
    python = env.get_domain("py")
    target = node.get("reftarget", "")
    found = [name for name in python.objects if name.endswith(f".{target}")]
    if node.get("refdomain") != "py" or len({python.objects[name].node_id for name in found}) != 1:
        return None
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def setup(app):
    app.connect("missing-reference", short_name)
    app.connect("include-read", home_links)
