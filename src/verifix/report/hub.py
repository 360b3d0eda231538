"""Upload a corrected model with its card to the Hugging Face Hub."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from verifix.errors import OutputError, UsageError, one_line
from verifix.io.optional_imports import library


def check_hub(repo: str) -> None:
    """Check, before the long work, that the library is there, the name is one, and somebody is logged in.

    Parameters
    ----------
    repo
        Name of the repository: ORG/NAME, or NAME.

    Raises
    ------
    UsageError
        If not, or if the Hub does not answer.
    """
    hub = library("huggingface_hub", "huggingface_hub", "hub")
    with _refused(f"--push-to-hub {repo} cannot work", "check the name, and log in with: hf auth login", UsageError):
        importlib.import_module("huggingface_hub.utils").validate_repo_id(repo)
        hub.HfApi().whoami()


def push(repo: str, files: Mapping[str, Path | bytes], message: str) -> str:
    """Upload files in one commit; a repository that does not exist is made, as a private one.

    Parameters
    ----------
    repo
        Name of the repository.
    files
        By their path in the repository: a file here, or its content.
    message
        Message of the commit.

    Returns
    -------
    str
        Address of the repository.

    Raises
    ------
    OutputError
        If they could not be uploaded.
    """
    hub = library("huggingface_hub", "huggingface_hub", "hub")
    api = hub.HfApi()
    with _refused(f"the upload to {repo} failed", f"upload them with: hf upload {repo} FOLDER", OutputError):
        place = api.create_repo(repo, private=True, exist_ok=True)
        operations = [
            hub.CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()
        ]
        api.create_commit(place.repo_id, operations, commit_message=message)
    return str(place)


def files_of(out: Path) -> dict[str, Path | bytes]:
    """Return the files of a checkpoint, a file or a folder, by their path in a repository."""
    if not out.is_dir():
        return {out.name: out}
    return {path.relative_to(out).as_posix(): path for path in sorted(out.rglob("*")) if path.is_file()}


@contextmanager
def _refused(what: str, remedy: str, kind: type[UsageError | OutputError]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # huggingface_hub, its transport and its checks each have errors of their own
        why = ": ".join(one_line(each, 300) for each in (error, error.__cause__) if each is not None)
        raise kind(f"{what} ({why}); {remedy}") from None
