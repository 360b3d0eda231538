"""The command line: parse, call, print. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from verifix.cli.options import CompareCommand, CorrectCommand, DemoCommand, InspectCommand, ScoreCommand, UndoCommand
from verifix.errors import VerifixError

COMMANDS: dict[str, tuple[type[Any], tuple[str, ...]]] = {
    "demo": (DemoCommand, ("name",)),
    "correct": (CorrectCommand, ()),
    "score": (ScoreCommand, ("checkpoint",)),
    "compare": (CompareCommand, ("before", "after")),
    "inspect": (InspectCommand, ()),
    "undo": (UndoCommand, ("checkpoint",)),
}
"""Each command: the dataclass of its settings, and which of them are positional."""

LONGEST = 900
"""Characters of an error message; longer ones lose their middle."""

DEEPEST = 10
"""How many brackets may stand inside of each other in a file of settings."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments; those of the process by default.

    Returns
    -------
    int
        Exit code: 0 done, 1 a fault of the program, 2 usage, 3 no gain and no corrected checkpoint written, 4 no
        layers, 5 data and model do not fit, 130 interrupted, 143 terminated.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that lacks a character must not cost the result
    try:
        with _cleaning_up():
            command = parse(arguments)
            from verifix.cli.commands import run

            return run(command)
    except VerifixError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except _TerminatedError:
        return _fail("terminated", 143)
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except Exception as error:
        if os.environ.get("VERIFIX_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error}; set VERIFIX_TRACEBACK=1 to see where", 1)


class _TerminatedError(BaseException):
    """The process was asked to end."""


@contextmanager
def _cleaning_up() -> Iterator[None]:
    """Turn a request to end into an exception, so that what is half written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse(argv: Sequence[str]) -> Any:
    """Turn arguments into the settings of one command.

    Parameters
    ----------
    argv
        Arguments.

    Returns
    -------
    object
        An instance of one of the dataclasses of `COMMANDS`.

    Raises
    ------
    VerifixError
        If they are not usable, in one line.
    """
    from argparse import ArgumentError

    from jsonargparse import ArgumentParser

    parser = ArgumentParser(
        prog="verifix",
        description="Correct a trained classifier that learned from wrong labels, from a small verified set.",
        version=version("verifix"),
        exit_on_error=False,
        allow_abbrev=False,
    )
    subcommands = parser.add_subcommands(dest="command", required=True)
    for name, (settings, positional) in COMMANDS.items():
        subcommands.add_subcommand(name, _parser(settings, positional), help=(settings.__doc__ or "").splitlines()[0])
    for path in _config_files(argv):
        _check_config(path)
    try:
        parsed = parser.parse_args(_with_underscores(argv))
    except (ArgumentError, UnicodeDecodeError) as error:
        command = next((word for word in argv if word in COMMANDS), "")
        raise VerifixError(f"{_in_flags(str(error))}; see {' '.join(('verifix', command)).strip()} --help") from None
    values = parsed[parsed.command].as_dict()
    for path in values.pop("config", None) or ():
        _refuse_negations(path)
    settings = COMMANDS[parsed.command][0]
    return settings(**values)


def _config_files(argv: Sequence[str]) -> list[str]:
    behind = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"]
    return [*behind, *(word.partition("=")[2] for word in argv if word.startswith("--config="))]


def _check_config(path: str) -> None:
    """Refuse a file of settings that is damaged, or that grows without end: names for parts of it, and deep nests."""
    import yaml  # type: ignore[import-untyped]

    if not Path(path).is_file():
        return  # which the parser says
    depth = 0
    try:
        for event in yaml.parse(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > DEEPEST or isinstance(event, yaml.AliasEvent):
                raise ValueError("settings are numbers, words and short lists, without aliases")
            if depth == 1 and isinstance(event, yaml.SequenceStartEvent):
                raise ValueError("it is a list, and must name settings, one per line")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise VerifixError(f"{path} is not a file of settings ({' '.join(str(error).split())}); correct it") from None


def _refuse_negations(path: Any) -> None:
    """Refuse ``no_progress: true`` in a file, where it would mean nothing: there it is ``progress: false``."""
    import yaml

    for key in yaml.safe_load(Path(str(path)).read_text(encoding="utf-8")) or {}:
        if str(key).startswith("no_"):
            raise VerifixError(
                f"{path} has {key}; in a file a switch is turned off as {str(key).removeprefix('no_')}: false"
            )


def _parser(settings: type[Any], positional: Sequence[str]) -> Any:
    from jsonargparse import ActionYesNo, ArgumentParser

    parser = ArgumentParser(
        exit_on_error=False, allow_abbrev=False, description=(settings.__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--config", action="config", help="YAML file with any of these settings.")
    switches = {f.name: f.default for f in fields(settings) if isinstance(f.default, bool)}
    texts = _descriptions(settings)
    hints = _type_hints(settings)
    for name in positional:
        field = next(f for f in fields(settings) if f.name == name)
        optional = {} if field.default is MISSING else {"nargs": "?", "default": field.default}
        parser.add_argument(name, type=hints[name], help=texts[name], **optional)
    parser.add_class_arguments(settings, skip={*positional, *switches}, instantiate=False)
    for name, default in switches.items():
        if default:
            parser.add_argument(f"--{name}", action=ActionYesNo, default=True, help=texts[name])
        else:
            parser.add_argument(f"--{name}", action="store_true", help=texts[name])
    return parser


def _descriptions(settings: type[Any]) -> dict[str, str]:
    """Return each setting's description from the docstrings of its class and the classes it builds on."""
    from docstring_parser import parse as parse_docstring

    texts: dict[str, str] = {}
    for base in reversed(settings.__mro__[:-1]):
        texts |= {p.arg_name: p.description or "" for p in parse_docstring(base.__doc__ or "").params}
    return texts


def _type_hints(settings: type[Any]) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(settings)


def _with_underscores(argv: Sequence[str]) -> list[str]:
    """Spell ``--verified-from`` as the setting is spelled, and tie a negative number to its flag."""
    joined: list[str] = []
    for argument in argv:
        if joined and re.match(r"-[\d.]", argument) and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return [
        "=".join([head.replace("-", "_").replace("__", "--", 1), *value])
        if argument.startswith("--") and len(argument) > 2
        else argument
        for argument in joined
        for head, *value in [argument.split("=", 1)]
    ]


def _in_flags(message: str) -> str:
    """Name settings as the user typed them: ``correct.save_moments`` is ``--save-moments``."""
    message = " ".join(message.split())
    if union := re.search(r'Parser key "(?:\w+\.)?(\w+)": Does not validate .* Given value: (.*)', message):
        message = f"correct.{union[1]} cannot be {union[2]}"
    message = re.sub(r'Parser key "(?:\w+\.)?(\w+)"', r"correct.\1", message)
    pattern = rf"\b(?:{'|'.join(COMMANDS)})\.(\w+)"
    return re.sub(pattern, lambda match: f"--{match[1].replace('_', '-')}", message).rstrip(".")


def _fail(message: str, code: int) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST:  # a name in a hostile file may be as long as the file
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    line = "".join(c if c.isprintable() else "?" for c in line)  # nor may it steer the terminal
    sys.stderr.write(f"verifix: error: {line}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
