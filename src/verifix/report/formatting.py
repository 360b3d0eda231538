"""Numbers and findings in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from verifix.progress import duration
from verifix.recipe.decision import spelled

NOTHING = "–"
"""What stands for a number that is not known."""

LONGEST_NAME = 300
"""Characters of a name that are shown; file systems allow 255."""

WORDS = {"improved": "Improved", "harmful": "Harmful", "not proven": "Not proven"}

_HIDDEN = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
"""Control characters, which a page cannot hold or would hide, and the signs that picture them."""


def printable(value: object) -> str:
    """Return a text that a page can hold: control characters pictured, what is no character at all replaced."""
    text = str(value).translate(_HIDDEN)
    return re.sub("[\x80-\x9f\ud800-\udfff]", "\ufffd", text)


def shortened(text: str, longest: int = LONGEST_NAME) -> str:
    """Leave out the middle of a text that is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def count(number: float | None) -> str:
    """Write a whole number out: 1,000."""
    return NOTHING if number is None else f"{number:,.0f}"


def percent(number: float | None) -> str:
    """Write a percentage out: 88.2%."""
    return NOTHING if number is None else f"{number:.1f}%"


def share(number: float | None) -> str:
    """Write a share of 0 to 1 as a whole percentage: 92%."""
    return NOTHING if number is None else f"{100 * number:.0f}%"


def signed(number: float | None, digits: int = 1) -> str:
    """Write a difference out, with its sign: +4.9."""
    if number is None:
        return NOTHING
    text = f"{number:+.{digits}f}"
    return (text[1:] if float(text) == 0 else text).replace("-", "−")


def decimal(number: float | None, digits: int = 4) -> str:
    """Write a number with so many digits after the point."""
    return NOTHING if number is None else f"{number:.{digits}f}".replace("-", "−")


def probability(number: float | None) -> str:
    """Write a p-value out: 0.0031."""
    if number is None:
        return NOTHING
    return "below 0.0001" if number < 1e-4 else f"{number:.2g}"


def time(seconds: float | None) -> str:
    """Write a time out."""
    if seconds is None:
        return NOTHING
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def size(number: float | None) -> str:
    """Write bytes out: 6.0 GB."""
    if number is None:
        return NOTHING
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def strength(value: Any) -> str:
    """Write a strength out: one number, or several."""
    return spelled(tuple(value) if isinstance(value, list) else value)


def plural(number: int, noun: str) -> str:
    """Write a count with its noun: 1 class, 3 classes."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def unseen(result: Mapping[str, Any]) -> str:
    """Say what the samples are that a proof was made on.

    Parameters
    ----------
    result
        The content of `result.json`, made `plain`.

    Returns
    -------
    str
        The end of a sentence: "on 200 verified samples that no stage and no strength has seen".
    """
    proof, comparison = part(result, "proof"), part(result, "proof", "comparison")
    samples = count(comparison.get("samples", proof.get("samples")))
    if proof.get("kind") == "test":
        return f"on {samples} test samples, on which nothing was chosen"
    if is_unverified(result):
        return f"on {samples} samples whose labels nobody verified"
    if part(result, "provenance").get("verified_from") == "training":
        return f"on {samples} verified samples that the network was trained on"
    return f"on {samples} verified samples that no stage and no strength has seen"


def is_unverified(result: Mapping[str, Any]) -> bool:
    """Tell whether nobody verified the samples that the correction was made from."""
    return bool(result.get("unverified")) or part(result, "provenance").get("verified_from") == "trusted"


def verdict(result: Mapping[str, Any]) -> str:
    """Say in one sentence what came out.

    Parameters
    ----------
    result
        The content of `result.json`, made `plain`.

    Returns
    -------
    str
        The sentence.
    """
    comparison = part(result, "proof", "comparison")
    if not comparison:
        return _without_proof(result)
    word = WORDS.get(str(result.get("verdict")), "No verdict")
    return f"{word}: {figures(comparison)} {unseen(result)}."


def figures(comparison: Mapping[str, Any]) -> str:
    """Return accuracy before and after, and the gain with its interval."""
    before, after, gain = (part(comparison, key) for key in ("before", "after", "gain"))
    level = f"{share(gain.get('level') or 0.95)} interval"
    interval = f", {level} {signed(gain.get('low'))} to {signed(gain.get('high'))}" if "low" in gain else ""
    return (
        f"{percent(before.get('accuracy'))} right before, {percent(after.get('accuracy'))} after "
        f"({signed(gain.get('estimate'))}{interval})"
    )


def _without_proof(result: Mapping[str, Any]) -> str:
    test = part(result, "test")
    if "before" in test and "after" in test:
        return (
            f"No verdict: {percent(test['before'])} right before, {percent(test['after'])} after "
            f"({signed(test['after'] - test['before'])}) on {count(test.get('samples'))} test samples."
        )
    if result.get("changed") is False:
        return "No change: the samples do not clearly support any correction."
    return "No proof: nothing was measured on samples that the correction has not seen."


def caution(result: Mapping[str, Any]) -> str | None:
    """Say what the scores are not, because of where the samples come from; None for verified unseen ones."""
    if result.get("warning"):
        return str(result["warning"])
    if is_unverified(result):
        return (
            "Nobody verified the labels that this correction was made from. Scores on them are no estimate of a gain."
        )
    if part(result, "provenance").get("verified_from") == "training":
        return "The network was trained on the verified samples. Scores on them are no estimate for new data."
    return None


def part(data: Mapping[str, Any], *path: str) -> dict[str, Any]:
    """Return a part of a result by the names on the way to it; empty if it is not there."""
    found: Any = data
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def listed(data: Mapping[str, Any], name: str) -> list[Any]:
    """Return a list of a result by its name; empty if it is not there."""
    found = data.get(name)
    return list(found) if isinstance(found, Sequence) and not isinstance(found, str) else []
