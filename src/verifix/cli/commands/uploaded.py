"""The upload of a corrected checkpoint by `verifix correct --push-to-hub`."""

from __future__ import annotations

from pathlib import Path

from verifix.model import ranks
from verifix.report import Result, model_card
from verifix.report.hub import files_of, push


def uploaded(result: Result, repo: str | None) -> str:
    """Upload what was written, with its card, and say so; nothing if it was not asked for.

    Parameters
    ----------
    result
        The result, with the names of the files.
    repo
        Name of the repository; None for no upload.

    Returns
    -------
    str
        A line to add to the text of the command, with its line break; empty without a repository.
    """
    if repo is None:
        return ""
    if result.out is None or result.correction_file is None:
        return "\nNothing was uploaded, because no checkpoint was written."
    beside = Path(result.correction_file)
    files = {**files_of(Path(result.out)), beside.name: beside, "README.md": model_card(result).encode()}
    message = f"Correct with verifix: {result.verdict or 'no proof'}"
    ranks.only_first(lambda: push(repo, files, message))
    return f"\nUploaded to {repo} on the Hugging Face Hub."
