"""The command line: parse, call, print. Nothing heavy is imported until a command needs it."""

from __future__ import annotations

import difflib
import inspect
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cyclopts import Parameter

from verifix.cli.base_options import Command
from verifix.cli.launch import Launch, launch_of, launched, silence
from verifix.cli.options import COMMANDS
from verifix.cli.streams import nobody_reads, prepare_streams
from verifix.errors import UsageError, VerifixError, printable
from verifix.model.threads import wait_passively
from verifix.settings import declarations

if TYPE_CHECKING:
    from cyclopts import App, Argument, ArgumentCollection, CycloptsError

LONGEST = 900
"""Characters of an error message; longer ones lose their middle."""

APART = ("config", "print_config")
"""Settings that only the command line can say."""

ENDED = "terminated: another of the processes of this run has ended before its time, or all were stopped; start again"
"""What a process says that is ended by torchrun, unless another one has said why."""

WIDEST = 100
"""Columns of the help, also where the terminal has more."""


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
    ours = argv is None  # the process is, too
    if ours:
        wait_passively()
    arguments = list(sys.argv[1:] if argv is None else argv)
    prepare_streams(ours=ours)
    launch = None
    try:
        with _cleaning_up():
            launch = launch_of(os.environ) if ours else None
            if launch is not None and launch.rank > 0:
                silence()
            command = None
            with nobody_reads(1, ours=ours):
                command = parse(arguments)
            return 0 if command is None else _run(command, ours, launch)
    except VerifixError as error:
        return _fail(str(error), error.exit_code, launch)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, launch)
    except _TerminatedError:
        return _fail("terminated" if launch is None else ENDED, 143, launch)
    except Exception as error:
        if os.environ.get("VERIFIX_TRACEBACK"):
            raise
        return _fail(f"{type(error).__name__}: {error}; set VERIFIX_TRACEBACK=1 to see where", 1, launch)


def _run(command: Any, ours: bool, launch: Launch | None) -> int:
    from verifix.cli.commands import run

    with nullcontext() if launch is None else launched(launch, command):
        code = run(command, for_good=ours)
    return code if launch is None or launch.rank == 0 else 0  # the first process speaks for all, also in this


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
        An instance of one of the classes of `COMMANDS`; None if all that was asked for has been printed.

    Raises
    ------
    VerifixError
        If they are not usable, in one line.
    """
    from cyclopts import CycloptsError

    words = list(argv)
    if not words:
        raise UsageError(f"give a command: {', '.join(COMMANDS)}; see verifix --help")
    named = [word for word in words[:1] if word in COMMANDS]
    try:
        return application(named or COMMANDS)(words, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        raise UsageError(f"{_in_one_line(error)}; see {' '.join(('verifix', *named))} --help") from None


def application(names: Iterable[str] = COMMANDS) -> App:
    """Return the command line, with some commands or all, for parsing, for help and for the completion of shells."""
    from importlib.metadata import version

    from cyclopts import App
    from rich.console import Console

    class Heedful(Console):
        """One that leaves it to `main` to tell what it means that nobody reads."""

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = Heedful()
    console.width = min(console.width, WIDEST)
    app = App(
        name="verifix",
        help="Correct a trained classifier that learned from wrong labels, from a small verified set.",
        version=lambda: f"verifix {version('verifix')}",
        help_format="plaintext",
        console=console,
        config=settle,
        default_parameter=Parameter(negative_iterable=(), negative_none=(), allow_repeating=True),  # the last counts
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for place, name in enumerate(names):
        app.command(_taking(COMMANDS[name]), name=name, help=inspect.getdoc(COMMANDS[name]), sort_key=place)
    app.register_install_completion_command()
    return app


def _taking(command: type[Command]) -> Callable[..., Command]:
    """Return the class of a command as a function, whose annotations say all that is declared about its settings."""

    def taking(*args: Any, **kwargs: Any) -> Command:
        return command(*args, **kwargs)

    kinds, texts = get_type_hints(command, include_extras=True), declarations(command)
    parameters = [
        each.replace(annotation=Annotated[kinds[name], Parameter(help=texts[name][1], required=name in command.needs)])
        for name, each in inspect.signature(command).parameters.items()
    ]
    taking.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return taking


def settle(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in what files of settings say where the command line says nothing, and refuse what is no whole number."""
    from cyclopts import CoercionError
    from cyclopts.config import Dict

    named = {argument.field_info.name: argument for argument in arguments}
    for token in reversed(named["config"].tokens if "config" in named else []):
        settings = read_settings(token.value, named)
        Dict(settings, source=token.value, use_commands_as_keys=False)(app, commands, arguments)
    for argument in named.values():
        for token in argument.tokens if int in (argument.hint, *get_args(argument.hint)) else ():
            if re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", token.value) and not re.fullmatch(r"[-+]?\d+", token.value):
                raise CoercionError(argument=argument, token=token, target_type=int)  # which else is rounded
    if "print_config" in named and named["print_config"].tokens:
        _print(named)


def read_settings(path: str, named: Mapping[str, Argument]) -> dict[str, str | list[str]]:
    """Read a file of settings; each value is the text that stands there, to be read as on the command line.

    Parameters
    ----------
    path
        A YAML file.
    named
        The settings that the command has, by name.

    Returns
    -------
    dict
        A text, or a list of texts, by name; settings without a value are left out.

    Raises
    ------
    UsageError
        If the file cannot be read, or holds anything but settings of the command.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        root = yaml.compose(Path(path).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        if root is not None and root.id != "mapping":
            raise ValueError("it must name settings, one per line")
        pairs = [(str(key.value).replace("-", "_"), _texts(value)) for key, value in (root.value if root else ())]
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UsageError(f"{path} is not a file of settings ({' '.join(str(error).split())}); correct it") from None
    found: dict[str, str | list[str]] = {}
    for name, value in pairs:
        if name not in named or name in APART or name in found:
            raise UsageError(f"{path} has {name}{_instead(name, named)}")
        if value is not None:
            switch = (
                bool in (named[name].hint, *get_args(named[name].hint)) and isinstance(value, str) and value.lower()
            )
            found[name] = str(yaml.SafeLoader.bool_values.get(switch, value)) if switch else value
    return found


def _texts(node: Any) -> str | list[str] | None:
    """Return what a node of YAML says, as it is spelled; None if it says nothing."""
    if not node.tag.startswith("tag:yaml.org,2002:") or ":python" in node.tag:
        raise ValueError(f"the tag {node.tag!r} is not for settings")
    if node.id == "sequence" and all(entry.id == "scalar" for entry in node.value):
        return [entry.value for entry in node.value]
    if node.id != "scalar":
        raise ValueError("settings are numbers, words and short lists")
    text: str = node.value
    return None if node.tag.endswith(":null") else text


def _instead(name: str, named: Mapping[str, Argument]) -> str:
    """Say what is wrong with the name of a setting in a file."""
    if name in named:
        return ", which only the command line can say" if name in APART else " twice"
    if name.removeprefix("no_") in named:
        return f"; in a file a switch is turned off as {name.removeprefix('no_')}: false"
    near = difflib.get_close_matches(name, named, 1)
    return f", which is no setting of this command{f'; did you mean {near[0]}?' if near else ''}"


def _print(named: Mapping[str, Argument]) -> None:
    """Print all settings as a file of settings, and stop."""
    import yaml

    def said(argument: Argument) -> Any:
        default = argument.field_info.default
        values = [token.value or token.implicit_value for token in argument.tokens] or [default]
        return None if values[0] in ("", inspect.Parameter.empty) else values[0] if len(values) == 1 else values

    settings = {name: said(argument) for name, argument in named.items() if name not in APART}
    sys.stdout.write(yaml.safe_dump(settings, sort_keys=False))
    sys.stdout.flush()
    raise SystemExit(0)


def _in_one_line(error: CycloptsError) -> str:
    """Say what is wrong with the arguments."""
    from cyclopts import CoercionError, MissingArgumentError, UnusedCliTokensError

    error.verbose = False
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        return f"{error.argument.name} needs a value"
    if isinstance(error, UnusedCliTokensError):
        return f"there is no place for {' '.join(error.unused_tokens or ())}"
    if isinstance(error, CoercionError) and error.token is not None and get_origin(error.target_type) is not Literal:
        name = (error.token.keyword or "").strip("[]")
        place = "" if error.token.source in ("", "cli") else f" in {error.token.source}"
        return f"{name}{place} cannot be {error.token.value}"
    return str(error).rstrip(".")


def _fail(message: str, code: int, launch: Launch | None = None) -> int:
    line = " ".join(message.split())
    if len(line) > LONGEST:  # a name in a hostile file may be as long as the file
        line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
    (sys.stderr.write if launch is None else launch.report)(f"verifix: error: {printable(line)}\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
