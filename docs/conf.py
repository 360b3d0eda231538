"""The documentation site: ``make docs`` builds it into ``build/site``, and runs every tutorial.

``TUTORIALS=15 make docs`` runs only the first and the fifth.
"""

import os
import re
import runpy
import sys
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

DOCS = Path(__file__).parent
SHIMS = DOCS / "_shims"
sys.path.insert(0, str(DOCS))  # pictures.py
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SHIMS), os.environ.get("PYTHONPATH")]))

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks are small; threads would only wait for each other
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the command verifix

runpy.run_path(str(SHIMS / "sitecustomize.py"))  # Python has imported another one, if any

project = "verifix"
author = project_copyright = "The verifix maintainers"
version = release = installed("verifix")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "matplotlib.sphinxext.plot_directive",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["tutorials", "gallery/sg_execution_times.rst", "_shims"]
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
    (
        "py:.*",
        r"(torch|nn|collections|pathlib|numpy|dataclasses|matplotlib|pandas)\..*|Tensor|ndarray|Path|callable",
    ),  # other projects, whose sites are not fetched
    (
        "py:class",
        r"verifix\.(model\.sources\.Source|model\.given\.Made|io\.data\.records\.Header|capture\.kinds\.lags\.Patches)",
    ),  # internal
]

plot_formats = ["svg"]
plot_html_show_formats = plot_html_show_source_link = False

sphinx_gallery_conf = {
    "examples_dirs": "tutorials",
    "gallery_dirs": "gallery",
    "within_subsection_order": "FileNameSortKey",
    "filename_pattern": f"tutorial_[{os.environ.get('TUTORIALS', '12345')}]_",
    "abort_on_example_error": True,
    "capture_repr": ("_repr_html_",),
    "image_srcset": ["2x"],
    "download_all_examples": False,
    "show_signature": False,
    "write_computation_times": False,
    "min_reported_time": float("inf"),  # times of this machine would say little
    "reset_modules": ("matplotlib",),
    "copyfile_regex": "",
}

html_theme = "furo"
html_title = "verifix"
html_static_path = ["_static"]
html_css_files = ["site.css"]


def tutorial_links(_app: Sphinx, _docname: str, content: list[str]) -> None:
    """Turn links to the script of a tutorial into links to the page that it becomes."""
    content[0] = re.sub(r"\]\(tutorials/(\w+)\.py\)", r"](gallery/\1)", content[0])


def home_links(_app: Sphinx, _path: Path, _parent: str, content: list[str]) -> None:
    """Turn the links of a page of the repository's root into links of a page of docs/, which includes it."""
    content[0] = re.sub(r"\]\((?![a-z]+:|#)", "](../", content[0]).replace("](../docs/", "](")
    tutorial_links(_app, _parent, content)


def short_name(app: Sphinx, env: Any, node: Any, contnode: Any) -> Any:
    """Resolve the name of a class of verifix without its module, as docstrings use it, if only one has it."""
    python = env.get_domain("py")
    target = node.get("reftarget", "")
    found = [name for name in python.objects if name.endswith(f".{target}")]
    if node.get("refdomain") != "py" or len({python.objects[name].node_id for name in found}) != 1:
        return None
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", found[0], node, contnode)


def setup(app: Sphinx) -> None:
    """Connect the above with Sphinx."""
    app.connect("source-read", tutorial_links)
    app.connect("missing-reference", short_name)
    app.connect("include-read", home_links)
