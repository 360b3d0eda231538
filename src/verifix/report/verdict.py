"""What a result comes to, in a sentence, and what its figures are not."""

from __future__ import annotations

from verifix.report.formatting import count, percent, signed
from verifix.report.result import Result


def measured_on(result: Result) -> str:
    """Say what the samples are that a proof was made on.

    Parameters
    ----------
    result
        The result.

    Returns
    -------
    str
        The end of a sentence: "on 200 verified samples that no stage and no strength has seen".
    """
    samples = count(None if result.comparison is None else result.comparison.samples)
    if result.proof is not None and result.proof.kind == "test":
        return f"on {samples} test samples, on which nothing was chosen"
    if result.picked:
        return f"on {samples} samples whose labels nobody verified"
    if result.provenance.verified_from == "training":
        return f"on {samples} verified samples that the network was trained on"
    return f"on {samples} verified samples that no stage and no strength has seen"


def verdict(result: Result) -> str:
    """Say in one sentence what came out."""
    if result.comparison is not None:
        return result.comparison.sentence(measured_on(result))
    if test := result.test:
        return (
            f"No verdict: {percent(test.before)} correct before, {percent(test.after)} after "
            f"({signed(test.gain)}) on {count(test.samples)} test samples."
        )
    if not result.changed:
        return "No change: the samples do not clearly support any correction."
    return "No proof: nothing was measured on samples that the correction has not seen."


def caution(result: Result) -> str | None:
    """Say what the scores are not, because of where the samples come from; None for verified unseen ones."""
    if result.warning:
        return result.warning
    if result.picked:
        return "Nobody verified the labels that this correction was made from. Scores on them do not estimate a gain."
    if result.provenance.verified_from == "training":
        return "The network was trained on the verified samples. Scores on them do not estimate accuracy on new data."
    return None


def preprocessing(result: Result) -> str:
    """Say in one sentence how the samples became inputs, which is what the verdict applies to."""
    return f"Preprocessing of the samples: {prepared(result)}."


def prepared(result: Result) -> str:
    """Say how the samples became inputs, without a full stop."""
    return result.preprocessing or "none; they were used as they were given"
