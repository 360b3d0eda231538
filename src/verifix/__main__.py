"""``python -m verifix``: the command line."""

from __future__ import annotations

import sys

from verifix.cli.main import main

sys.exit(main())
