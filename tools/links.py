"""Check the links of the built site without a network: ``python tools/links.py FOLDER``.

Every link to a file of the site has to lead to a file, every anchor to an element, and no page may load anything from
elsewhere. Links to other sites are not fetched.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOADING = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
"""Elements that load something when a page is opened, and where they say what."""


class Page(HTMLParser):
    """The links, the anchors and what is loaded of one page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.loaded: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what an element says."""
        given = dict(attrs)
        self.anchors |= {value for name in ("id", "name") if (value := given.get(name))}
        if target := given.get("href" if tag == "a" else LOADING.get(tag, "")):
            (self.links if tag == "a" else self.loaded).add(target)


@cache
def page(path: Path) -> Page:
    """Read a page once."""
    return Page(path.read_text(encoding="utf-8"))


def faults(site: Path) -> Iterator[str]:
    """Yield one line per link that leads nowhere.

    Parameters
    ----------
    site
        The folder of the built site.

    Yields
    ------
    str
        The page, and the link.
    """
    for path in sorted(site.rglob("*.html")):
        where = path.relative_to(site)
        for target in sorted(page(path).loaded):
            if urlsplit(target).netloc:
                yield f"{where}: loads {target}"
        for target in sorted(page(path).links | page(path).loaded):
            if not leads_somewhere(path, target):
                yield f"{where}: {target} leads nowhere"


def leads_somewhere(path: Path, target: str) -> bool:
    """Whether a link on a page leads to a file of the site, and to an element of it if it names one."""
    scheme, host, file, _, anchor = urlsplit(target)
    if scheme or host:
        return True
    there = (path.parent / unquote(file)).resolve() if file else path
    return there.is_file() and (not anchor or there.suffix != ".html" or unquote(anchor) in page(there).anchors)


if __name__ == "__main__":
    found = list(faults(Path(sys.argv[1])))
    print("\n".join(found) or "Every link of the site leads somewhere.")
    sys.exit(bool(found))
