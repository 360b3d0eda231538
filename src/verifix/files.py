"""Files that survive: written beside their target, flushed to the disk, then renamed into place."""

from __future__ import annotations

import json
import os
import stat
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from verifix.errors import CheckpointError, OutputError, UsageError, VerifixError


def check_output(path: str | Path, *, force: bool = False) -> Path:
    """Check that a file may be written, before the work for it begins.

    Parameters
    ----------
    path
        Where to.
    force
        Allow a file that exists.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    UsageError
        If the file exists and `force` is not set, or its folder does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; choose another name, or pass --force to replace it")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"the folder {path.parent} cannot be written to; choose another")
    return path


def check_outputs(outputs: Sequence[Path], inputs: Sequence[str | Path], *, force: bool) -> None:
    """Check all files that a command will write, before it begins.

    Parameters
    ----------
    outputs
        Where to.
    inputs
        What the command reads; never overwritten, whatever `force` says.
    force
        Allow other files that exist.

    Raises
    ------
    UsageError
        If two outputs are one file, one is an input, or one cannot be written.
    """
    for i, path in enumerate(outputs):
        if path.resolve() in {other.resolve() for other in outputs[:i]}:
            raise UsageError(f"{path} is to be written twice; choose different names")
        if any(path.exists() and Path(source).exists() and path.samefile(source) for source in inputs):
            raise UsageError(f"{path} is an input; it is never overwritten, so choose another name")
        check_output(path, force=force)


def write_atomically(path: str | Path, write: Callable[[Path], None], *, force: bool = False) -> Path:
    """Let `write` fill a temporary file, make sure that it is on the disk, and rename it to `path`.

    Parameters
    ----------
    path
        Where to.
    write
        Receives the temporary path.
    force
        Replace a file that exists, keeping its permissions.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before is untouched.
    """
    path = check_output(path, force=force)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        temporary.chmod(mode)
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, Exception) and not isinstance(error, VerifixError):
            line = " ".join(str(error).split())[:200]
            raise OutputError(
                f"{path} could not be written ({type(error).__name__}: {line}); check the disk"
            ) from error
        raise
    return path


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, force: bool = False
) -> Path:
    """Write tensors atomically; the same tensors and metadata give the same bytes.

    Parameters
    ----------
    path
        Where to.
    tensors
        By name.
    metadata
        Strings by name.
    force
        Replace a file that exists.

    Returns
    -------
    Path
        The path.
    """
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}

    def write(temporary: Path) -> None:
        save_file(contiguous, temporary, dict(metadata))
        _sort_header(temporary)

    return write_atomically(path, write, force=force)


def _sort_header(path: Path) -> None:
    """Put the metadata in the order of its names: the library writes several entries in an arbitrary one."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise UsageError(f"{path} does not exist or is not a file; check the path")
    return Path(path)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    tensors : dict
        By name, on the CPU.
    metadata : dict
        Strings by name.

    Raises
    ------
    UsageError
        If there is no such file.
    CheckpointError
        If it is not a valid safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    path = _existing(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        line = " ".join(str(error).split())
        raise CheckpointError(f"{path} is not a readable safetensors file: {line}; check that it is complete") from None


def read_torch(path: str | Path) -> object:
    """Read a ``.pt`` file without running any code in it.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    object
        Its content: tensors and plain containers.

    Raises
    ------
    UsageError
        If there is no such file.
    CheckpointError
        If it is damaged, or holds more than tensors and plain containers.
    """
    path = _existing(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read with weights_only=True: {line} Save its state dict as safetensors"
        ) from None
