"""How far people agree: Cohen's kappa of every two who have labelled the same samples."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from verifix.io.data.tally import LABELS, Tally


@dataclass(frozen=True)
class Pair:
    """Two people, on the samples that both have labelled.

    Attributes
    ----------
    people
        Their names.
    samples
        How many both have labelled.
    equal
        To how many of these both gave the same label.
    kappa
        1 for full agreement, 0 for as much as by chance; None if both gave all samples one and the same label, or there
        are none.
    """

    people: tuple[str, str]
    samples: int
    equal: int
    kappa: float | None


@dataclass(frozen=True)
class Agreement:
    """How far everybody agrees: every two people who have labelled a sample in common."""

    pairs: tuple[Pair, ...]


def agreement(decisions: Tally) -> Agreement:
    """Compare all who have decided.

    Parameters
    ----------
    decisions
        Their decisions. What ended a disagreement is not among those compared.

    Returns
    -------
    Agreement
        Of every two.
    """
    labels = {name: dict[int, str]() for name in decisions.people()}
    for sample in decisions.voted():
        for name, record in decisions.by_person(sample).items():
            if record.status in LABELS and record.verified is not None:
                labels[name][sample] = record.verified
    pairs = [_pair(a, b, labels[a], labels[b]) for a, b in combinations(labels, 2)]
    return Agreement(tuple(pair for pair in pairs if pair.samples))


def _pair(a: str, b: str, of_a: dict[int, str], of_b: dict[int, str]) -> Pair:
    both = sorted(set(of_a) & set(of_b))
    first, second = [of_a[i] for i in both], [of_b[i] for i in both]
    equal = sum(x == y for x, y in zip(first, second, strict=True))
    if len({*first, *second}) < 2:
        return Pair((a, b), len(both), equal, None)
    from sklearn.metrics import cohen_kappa_score

    return Pair((a, b), len(both), equal, float(cohen_kappa_score(first, second)))
