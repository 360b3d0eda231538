"""What README and docs tell users to type, and what the tests put in its place to run it on small real data."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]

CORRECT = (
    "verifix correct --model py:net.py:build --checkpoint net.safetensors --verified verified.parquet "
    "--verified-from unseen --drawn random"
)
SELECT = "verifix select net.safetensors --model py:net.py:build --classes cat,dog,fox"

SUBSTITUTIONS = (
    ("--mean 0.491,0.482,0.447 --std 0.247,0.243,0.262", "--mean 0,0,0 --std 1,1,1"),
    ("--mean … --std …", "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"),
    ("verifix correct … --verified verified/", CORRECT.replace("verified.parquet", "verified")),
    ("verifix correct … --verified verified.jsonl", f"{CORRECT.partition(' --verified')[0]} --verified verified.jsonl"),
    ("verifix correct --verified scans.csv --groups patient …", f"{CORRECT} --groups patient"),
    ("-m verifix correct ...", f"-m {CORRECT}"),
    ("verifix correct …", CORRECT),
    ("verifix select … --data", f"{SELECT} --data"),
    ("timm:resnet18", "timm:test_resnet"),
    ("--num-classes 10", "--num-classes 3"),
    ("--count 300", "--count 30"),
    ("--count 200", "--count 20"),
    ("--expect-accuracy 76.9", ""),
    ("torchvision:resnet50", "torchvision:resnet18"),
)
"""What stands for what a page leaves out, and smaller models and counts for those that it names."""

ADDED = {
    "correct": "--alpha 10 --no-check-inputs --no-progress --force",
    "compare": "--no-check-inputs --no-progress",
    "select": "--no-progress --force",
    "score": "--no-progress",
    "export": "--force",
    "import": "--force",
    "undo": "--force",
}
"""Options that every run of a command gets: no choice of a strength, on networks that have learned little."""

ELSEWHERE = {
    r"git clone|cd ": "needs a network",
    r"pip install '?\.?": "changes the environment; the extras are checked against pyproject.toml",
    r"make ": "makes an environment of its own; CI runs the targets, and their names are checked",
    r"python -m benchmarks": "takes hours; tests/benchmarks run its parts, and the modules are checked",
    r"VERIFIX_FUZZ=long python -m pytest": "takes hours; the suite runs the short profile of the same file",
    r"ssh ": "needs a second machine",
    r"hf auth login": "needs an account",
    r"sed ": "rewrites text of a file that another tool reads",
    r"verifix correct .*--push-to-hub": "needs an account; tests/cli/test_cli_hub.py uploads to a Hub on this machine",
    r"verifix review ": "serves a page until it is stopped; tests/review run it in Chromium",
    r"torchrun .*": "needs several GPUs or machines; tests/cli/test_launch.py runs two processes",
    r"(#!|#SBATCH|head=|srun )": "needs SLURM",
    r"(OMP_NUM_THREADS=4 )?verifix demo": "takes a minute; tests/cli/test_demo.py runs both demonstrations",
    r"verifix select net.pt .*pool|verifix correct .*--in-chans|verifix compare net.pt fixed.pt": (
        "make tutorial runs the page, and tests/review/test_review_docs.py its commands' parsing"
    ),
}
"""Commands that no test of this table runs, as patterns, and why. Those of verifix are parsed as all others are."""


def shell_commands(page: Path) -> list[str]:
    """Return what a page tells users to type in a shell, one line each, without comments and outputs."""
    text = page.read_text(encoding="utf-8")
    found: list[str] = []
    for language, block in re.findall(r"```(console|bash|sh)\n(.*?)```", text, re.S):
        for line in block.replace("\\\n", " ").splitlines():
            prompt = re.match(r"(?:\w*)\$ ", line)
            if language == "console" and not prompt:
                continue  # an output
            typed = line[prompt.end() :] if prompt else line
            typed = typed if typed.startswith("#") else re.sub(r"\s+# .*| #.*", "", typed)
            found += [" ".join(part.split()) for part in typed.split(" && ") if part.strip()]
    return found


def substituted(command: str) -> str:
    """Return a command with what the tests put in its place."""
    for given, taken in SUBSTITUTIONS:
        command = command.replace(given, taken)
    return command if "--out" in command or "verifix correct " not in command else f"{command} --out fixed.safetensors"


def reason(command: str) -> str:
    """Return why a command is not run; nothing if it is."""
    return next((why for pattern, why in ELSEWHERE.items() if re.match(pattern, command)), "")


def arguments(command: str) -> list[str] | None:
    """Return the arguments of a command of verifix, with those that its runs get; None for another program."""
    own = re.search(r"(?:^|-m |server\$ |=4 )verifix (.*)", command)
    if own is None:
        return None
    words = shlex.split(own.group(1))
    return [*words, *shlex.split(ADDED.get(words[0], ""))]
