"""Run docs/tutorial.md from beginning to end: its code, its commands, and a reviewer who presses the keys.

Run from the repository's root: ``python tools/tutorial.py [FOLDER]``. With ``--write`` the outputs and the picture of
the page take the place of those in the docs.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE, PICTURE = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "images" / "review.png"
BLOCK = re.compile(r"```(python|console|text)\n(.*?)```", re.S)
SHOWN_AT = 20
"""The sample that is on the picture of the page."""

FEW, VERDICTS = 8, ("Improved", "Not proven", "Harmful", "No change")
"""Lines that are shown in full, and how the line with the verdict begins."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def main(words: list[str]) -> int:
    """Run the tutorial.

    Parameters
    ----------
    words
        The folder to work in, which is made; a new one by default. ``--write`` to renew the docs.

    Returns
    -------
    int
        Exit code.
    """
    renew = "--write" in words
    places = [word for word in words if word != "--write"]
    folder = Path(places[0]).resolve() if places else Path(tempfile.mkdtemp(prefix="verifix-tutorial-"))
    folder.mkdir(parents=True, exist_ok=True)
    text = PAGE.read_text(encoding="utf-8")
    os.chdir(folder)
    outputs: list[str] = []
    for kind, content in BLOCK.findall(text):
        if kind == "python":
            sys.stdout.write("Training the network.\n")
            exec(compile(content, str(PAGE), "exec"), {"__name__": "tutorial"})  # noqa: S102 - it is our own page
        elif kind == "console":
            outputs += list(_run(content.strip().removeprefix("$ ")))
    if renew:
        PAGE.write_text(_renewed(text, outputs), encoding="utf-8")
        shutil.copy("review.png", PICTURE)
    sys.stdout.write(f"Done. Everything is in {folder}; open report.html there.\n")
    return 0


def _run(line: str) -> Iterator[str]:
    """Run a command of the page, and yield what the page shows of it."""
    name, *words = shlex.split(line)
    if name != "verifix":
        return  # make tutorial, which this is
    sys.stdout.write(f"$ {line}\n")
    sys.stdout.flush()
    command = [sys.executable, "-m", "verifix", *words]
    if words[0] == "review":
        yield from _review([*command, "--port", "0"])
        return
    found = subprocess.run([*command, *_quiet(words[0])], check=True, stdout=subprocess.PIPE, text=True)  # noqa: S603
    sys.stdout.write(found.stdout)
    yield found.stdout


def _quiet(name: str) -> list[str]:
    return ["--no-progress"] if name in ("select", "correct", "compare") else []


def _review(command: list[str]) -> Iterator[str]:
    """Be the reviewer: open the page, press the keys, and end the command; yield what the page and the command say."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # noqa: S603
    try:
        assert process.stderr is not None  # noqa: S101 - it is a pipe
        address = next(found[0] for line in process.stderr if (found := re.search(r"http://\S+", line)))
        yield _verify(address)
        process.send_signal(2)
        out, _ = process.communicate(timeout=60)
        sys.stdout.write(out)
        yield out
    finally:
        process.kill()
        process.wait()


def _verify(address: str) -> str:
    """Verify the whole queue by keys alone, as somebody who knows digits."""
    from playwright.sync_api import sync_playwright
    from sklearn.datasets import load_digits
    from sklearn.utils import shuffle

    truth = shuffle(*load_digits(return_X_y=True), random_state=0)[1]
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise SystemExit("there is no Chromium; install Debian's package chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        page = browser.new_context(viewport={"width": 1200, "height": 860}).new_page()
        page.set_default_timeout(60_000)
        page.goto(address)
        page.wait_for_selector("#name:visible")
        page.keyboard.type("Ada")
        page.keyboard.press("Enter")
        _press_keys(page, truth)
        page.wait_for_timeout(1000)
        while "saving" in page.inner_text("#far"):
            page.wait_for_timeout(100)
        page.wait_for_timeout(3000)  # until the figures of the last decision are there
        found = [page.inner_text(f"#{name}") for name in ("far", "rate")]
        browser.close()
    sys.stdout.write("\n".join(found) + "\n")
    return "\n".join(found)


def _press_keys(page: Any, truth: Any) -> None:
    page.wait_for_selector("#stage[data-place='0']")
    for place in range(int(page.get_attribute("#progress", "max"))):
        page.wait_for_selector(f"#stage[data-place='{place}']")
        if place == SHOWN_AT:
            page.wait_for_timeout(1500)
            page.screenshot(path="review.png")
        label, file = _told(page)
        right = str(truth[int(Path(file).stem)])
        page.keyboard.press("k" if right == label else right)
    page.wait_for_selector("#done:visible")


def _told(page: Any) -> tuple[str, str]:
    """Return the given label and the name of the file, as they stand on the page."""
    return page.inner_text("#given").rpartition(" ")[2], page.inner_text("#which").rpartition(", ")[2]


def _renewed(text: str, outputs: list[str]) -> str:
    """Return the page with new outputs; of long ones, the first line, the verdict and the last line."""
    left = map(_shortened, outputs)
    return re.sub(r"```text\n.*?```", lambda _: f"```text\n{next(left).rstrip()}\n```", text, flags=re.S)


def _shortened(output: str) -> str:
    lines = output.rstrip().split("\n")
    verdict = next((i for i, line in enumerate(lines) if line.startswith(VERDICTS)), None)
    if len(lines) <= FEW or verdict is None:
        return output
    kept = [[0], list(range(verdict, verdict + 3)), [len(lines) - 1]] if verdict else [list(range(3))]
    return "\n…\n".join("\n".join(lines[i] for i in part) for part in kept)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
