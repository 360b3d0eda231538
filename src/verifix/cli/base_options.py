"""What every command takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

from verifix.settings import OUTPUT, READS, SWITCH, Settings


@dataclass(frozen=True, kw_only=True)
class Command(Settings):
    """What every command takes."""

    needs: ClassVar[tuple[str, ...]] = ()  # settings that the command line insists on
    shared: ClassVar[bool] = False  # whether several processes can share the work

    json: Annotated[bool, OUTPUT, SWITCH] = False
    """Print the result as JSON on stdout."""
    config: Annotated[Sequence[str] | None, OUTPUT, READS] = None
    """A YAML file with any of these settings, named with underscores. An option on the command line overrides the
    file."""
    print_config: Annotated[bool, OUTPUT, SWITCH] = False
    """Print all settings in the form of such a file, and exit."""


@dataclass(frozen=True, kw_only=True)
class WritingCommand(Command):
    """What every command takes that writes files."""

    force: Annotated[bool, OUTPUT, SWITCH] = False
    """Replace files that exist; with correct, also go on where the samples do not look as in training (see
    --check-inputs), and write a correction whose gain is not proven."""
