"""What verifix can correct of classifiers as they are: families of timm, torchvision and transformers.

Run from the repository's root: ``python -m benchmarks.coverage``. Writes JSON to benchmarks/results, and the tables of
docs/coverage.md from it; ``--table`` only writes the tables. Weights are random, and one image or one sequence is
enough: the survey asks which parameters are seen to multiply, not how well a correction does. Four checks are made
beside it, none of which use what verifix saw:

1. ``unexplained`` counts parameters of two or more dimensions without a status and reason. There must be none.
2. ``contradictions`` compares every account with the operators that ran below the functions verifix intercepts: what
   it calls unused must reach none, what it calls looked up or added must be only that, and what it corrects must be in
   a product. ``cautious`` counts elements that it counts as multiplied although they are only added.
3. Parameters that are called unused become NaN, which must leave the output as it is, bit for bit.
4. ``padding`` compares the moments of a padded batch of texts with those of its texts alone.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import resource
import sys
import time
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import verifix
from benchmarks.coverage_models import Case, declare_missing_operators, of_timm, of_torchvision, unsurveyed_families
from benchmarks.coverage_table import write_tables
from benchmarks.coverage_transformers import of_transformers, padded_text
from benchmarks.coverage_uses import unchanged_without, watch
from benchmarks.environment import environment
from verifix.capture.census import Account
from verifix.inspection import Survey
from verifix.model.run import run_model
from verifix.moments import Moments

OUT = Path("benchmarks/results/coverage.json")
PAGE = Path("docs/coverage.md")
LIBRARIES = ("torchvision", "timm", "transformers")
LENGTHS = (12, 7, 9)
"""Tokens of the texts that are padded into one batch."""


def cases() -> Iterator[Case]:
    """Name every model of the survey.

    Yields
    ------
    Case
        A model, not yet built.
    """
    yield from of_torchvision()
    yield from of_timm()
    yield from of_transformers()


def surveyed(case: Case) -> dict[str, Any]:
    """Survey one model and check the survey.

    Parameters
    ----------
    case
        The model.

    Returns
    -------
    dict
        What came out, or under "skipped" why nothing did.
    """
    entry: dict[str, Any] = {"library": case.library, "family": case.family, "name": case.name}
    torch.manual_seed(0)
    try:
        model = case.build().eval()
        inputs = case.inputs(model)
        start = time.perf_counter()
        survey = verifix.inspect(model, inputs)
        seconds = round(time.perf_counter() - start, 2)
    except Exception as error:
        return {**entry, "skipped": f"{type(error).__name__}: {error}"[:300]}
    return {
        **entry,
        "input": list(tree_leaves(inputs)[0].shape),
        "share": survey.share,
        **summary(survey),
        "unexplained": len(unexplained(model, survey)),
        **checked(model, inputs, survey),
        **({"padding": padding(model)} if case.padded else {}),
        "seconds": seconds,
    }


def summary(survey: Survey) -> dict[str, Any]:
    """Count elements by what becomes of them, and group the reasons.

    Parameters
    ----------
    survey
        The survey of a model.

    Returns
    -------
    dict
        ``elements`` by standing, and ``reasons``, each with the parameters and elements that it keeps.
    """
    elements = dict.fromkeys(("corrected", "skipped", "not_multiplied", "unused"), 0)
    reasons: dict[tuple[str, str], dict[str, Any]] = {}
    for account in survey.accounts:
        standing = account.fate
        elements[standing] += account.size
        if account.reason:
            first = {"standing": standing, "reason": account.reason, "parameters": 0, "elements": 0}
            group = reasons.setdefault((standing, account.reason), {**first, "example": account.parameter})
            group["parameters"] += 1
            group["elements"] += account.size
    return {"elements": elements, "reasons": sorted(reasons.values(), key=lambda group: -group["elements"])}


def unexplained(model: nn.Module, survey: Survey) -> list[str]:
    """Return parameters of two or more dimensions that a survey does not explain.

    Parameters
    ----------
    model
        The model.
    survey
        Its survey.

    Returns
    -------
    list of str
        Names; empty if every element is corrected, skipped with a reason, or unused, and counted once.
    """
    accounts = {account.parameter: account for account in survey.accounts}
    wide = {name: p.numel() for name, p in model.named_parameters() if p.ndim >= 2}
    return [
        name
        for name, size in wide.items()
        if name not in accounts or accounts[name].size != size or not _explained(accounts[name])
    ]


def _explained(account: Account) -> bool:
    return {
        "corrected": bool(account.layers) or account.kind != "",
        "skipped": account.reason != "",
        "unused": not account.layers,
    }[account.status]


def checked(model: nn.Module, inputs: Any, survey: Survey) -> dict[str, Any]:
    """Compare a survey with what becomes of the parameters below the functions that verifix intercepts.

    Parameters
    ----------
    model
        The model, in eval mode.
    inputs
        The batch that was surveyed.
    survey
        The survey.

    Returns
    -------
    dict
        ``contradictions``, one line each, and the ``cautious`` elements.
    """
    uses = watch(model, inputs, run_model)
    lines = (uses.contradiction(a.parameter, a.status, multiplies=a.multiplies) for a in survey.accounts)
    found = [line for line in lines if line]
    unused = [account.parameter for account in survey.accounts if account.status == "unused"]
    if unused and not unchanged_without(model, unused, lambda: run_model(model, inputs)):
        found.append(f"the output depends on what is called unused: {', '.join(unused)}")
    cautious = (a.size for a in survey.accounts if a.fate == "skipped" and uses.verdict(a.parameter) == "added")
    return {"contradictions": found, "cautious": sum(cautious)}


def padding(model: nn.Module) -> dict[str, Any]:
    """Compare the moments of a padded batch with those of its texts alone.

    Parameters
    ----------
    model
        A model of token ids.

    Returns
    -------
    dict
        The largest relative difference of a layer's ``moments``, and that of the model's own ``outputs``; or under
        "refused" why verifix does not take the batch.
    """
    together = padded_text(model, LENGTHS)
    alone = [{key: x[i, :length] for key, x in together.items()} for i, length in enumerate(LENGTHS)]
    labels = torch.arange(len(LENGTHS))
    one = verifix.collect_moments(model, list(zip(alone, labels, strict=True)), batch_size=1, progress=False)
    try:
        both = verifix.collect_moments(model, (together, labels), batch_size=len(LENGTHS), progress=False)
    except verifix.DataError as error:
        return {"refused": str(error)}
    logits = torch.cat([_logits(model, {key: x.unsqueeze(0) for key, x in text.items()}) for text in alone])
    return {
        "moments": max(_apart(one.moments[layer], both.moments[layer]) for layer in one.moments),
        "outputs": _distance(logits, _logits(model, together)),
    }


def _logits(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        logits: Tensor = run_model(model, inputs).logits
    return logits


def _apart(a: Moments, b: Moments) -> float:
    """Compare moments up to their scale, on which a correction does not depend."""
    return _distance(*(moments.gram / moments.trace.clamp_min(1e-30)[:, None, None] for moments in (a, b)))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / a.norm().clamp_min(1e-30))


def record(chosen: list[Case]) -> dict[str, Any]:
    """Survey models and say with what.

    Parameters
    ----------
    chosen
        The models.

    Returns
    -------
    dict
        One entry per model, and the environment.
    """
    start = time.perf_counter()
    entries = []
    for case in chosen:
        entries.append(surveyed(case))
        gc.collect()
        _tell(entries[-1])
    return {
        "models": entries,
        "unsurveyed_timm_families": unsurveyed_families(),
        "seconds": round(time.perf_counter() - start, 1),
        "peak_gigabytes": round(1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9, 2),
        **{library: version(library) for library in LIBRARIES},
        **environment(),
    }


def _tell(entry: dict[str, Any]) -> None:
    said = entry.get("skipped") or f"{100 * entry['share']:.2f}% {' '.join(entry['contradictions'])}"
    sys.stderr.write(f"{entry['library']} {entry['name']}: {said}\n")


def main() -> None:
    """Survey all models and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="write the tables of the docs from the JSON that is there")
    parser.add_argument("--only", default="*", help="glob of LIBRARY/NAME; other than the default, nothing is written")
    arguments = parser.parse_args()
    if arguments.table:
        write_tables(PAGE, json.loads(OUT.read_text(encoding="utf-8")))
        return
    warnings.simplefilter("ignore")
    kept = declare_missing_operators()
    import transformers

    transformers.logging.set_verbosity_error()
    result = record([c for c in cases() if fnmatch.fnmatchcase(f"{c.library}/{c.name}", arguments.only)])
    del kept
    if arguments.only != "*":
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return
    OUT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    write_tables(PAGE, result)


if __name__ == "__main__":
    main()
