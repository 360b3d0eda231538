"""The tables of docs/coverage.md, from benchmarks/results/coverage.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- begin of the tables; python -m benchmarks.coverage --table -->", "<!-- end of the tables -->"

PROMISED = {
    "torchvision": ("vit_b_16", "swin_t", "swin_v2_t"),
    "timm": (
        *("vit_base_patch16_224", "swin_tiny_patch4_window7_224", "beit_base_patch16_224"),
        *("eva02_tiny_patch14_224", "swinv2_tiny_window8_256"),
    ),
    "transformers": ("GPT2ForSequenceClassification (base)", "BertForSequenceClassification (base)"),
}
"""Models of which at least 99% of the multiplied weights must be corrected."""

LOW = 0.9
EXACT = 1e-5


def tables(record: Mapping[str, Any]) -> str:
    """Render what was surveyed as Markdown.

    Parameters
    ----------
    record
        The content of the JSON file.

    Returns
    -------
    str
        The tables, with their headings.
    """
    models = [entry for entry in record["models"] if "skipped" not in entry]
    left = [entry for entry in record["models"] if "skipped" in entry]
    parts = [
        _summary(record, models),
        _section("Models of real size with a promised share of at least 99%", _shares(list(_promised(models)))),
        _section("Below 90%", _shares([entry for entry in models if entry["share"] < LOW])),
        _section("Not surveyed", [f"- {x['library']} `{x['name']}`: {x['skipped']}" for x in left] or ["None."]),
        _section("Padded batches", _padding([entry for entry in models if "padding" in entry])),
        *(_section(f"All of {name}", _everything(models, name)) for name in PROMISED),
    ]
    return "\n\n".join(parts)


def _promised(models: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    return (entry for entry in models if entry["name"] in PROMISED[entry["library"]])


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join((f"## {title}", "", *lines))


def _summary(record: Mapping[str, Any], models: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| library | families | models | median share | lowest | at least 99% |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for library in PROMISED:
        own = [entry for entry in models if entry["library"] == library]
        shares = [entry["share"] for entry in own]
        families = len({entry["family"] for entry in own})
        middle, lowest, high = statistics.median(shares), min(shares), sum(share >= 0.99 for share in shares)
        name = f"{library} {record[library]}"
        lines.append(f"| {name} | {families} | {len(own)} | {percent(middle)} | {percent(lowest)} | {high} |")
    return "\n".join(lines)


def percent(share: float) -> str:
    """Round down to two digits, so that 100% means all."""
    return f"{int(10000 * share + 1e-9) / 100:.2f}%"


def _shares(models: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| library | model | corrected | multiplied but skipped |", "| --- | --- | --- | --- |"]
    return lines + [f"| {x['library']} | `{x['name']}` | {percent(x['share'])} | {_reasons(x)} |" for x in models]


def _reasons(entry: Mapping[str, Any]) -> str:
    """Name the reasons that keep multiplied weights as they are, the one that keeps most first."""
    kept = [group for group in entry["reasons"] if group["standing"] == "skipped"]
    return "; ".join(f"{_count(group['elements'])} {group['reason']}" for group in kept)


def _count(elements: int) -> str:
    for size, letter in ((10**6, "M"), (10**3, "k")):
        if elements >= size:
            return f"{elements / size:.3g} {letter}"
    return str(elements)


def _padding(models: Sequence[Mapping[str, Any]]) -> list[str]:
    exact = [x for x in models if x["padding"].get("moments", 1) <= EXACT]
    own = [x for x in models if x["padding"].get("moments", 0) > EXACT]
    refused = [x for x in models if "refused" in x["padding"]]
    largest = max((x["padding"]["moments"] for x in exact), default=0.0)
    same = f"have the same moments with and without padding, to {largest:.0e}."
    lines = [f"- {len(exact)} of {len(models)} text models {same}"]
    for entry in own:
        moments, outputs = (entry["padding"][key] for key in ("moments", "outputs"))
        said = f"padding changes its moments by up to {moments:.1e}, and its own outputs by {outputs:.1e}."
        lines.append(f"- `{entry['name']}`: {said}")
    return lines + [f"- `{x['name']}` is refused: {x['padding']['refused']}" for x in refused]


def _everything(models: Iterable[Mapping[str, Any]], library: str) -> list[str]:
    lines = [
        "| family | model | input | corrected | weights: corrected | skipped | not multiplied | unused | why skipped |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for entry in models:
        if entry["library"] == library:
            counts = " | ".join(_count(size) for size in entry["elements"].values())
            shape = "×".join(map(str, entry["input"]))
            first = f"| {entry['family']} | `{entry['name']}` | {shape} | {percent(entry['share'])}"
            lines.append(f"{first} | {counts} | {_reasons(entry)} |")
    return lines


def write_tables(page: Path, record: Mapping[str, Any]) -> None:
    """Put the tables between the two marks of a page.

    Parameters
    ----------
    page
        The page.
    record
        The content of the JSON file.
    """
    text = page.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n\n{tables(record)}\n\n{END}{after}", encoding="utf-8")
