"""``python -m sgool``: the product's commands, and in a checkout the laboratory's.

The only place where the two meet: a wheel has no `sgool.lab`.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from sgool.cli import main as run


def main(arguments: Sequence[str] | None = None) -> int:
    """See `sgool.cli.main`."""
    if importlib.util.find_spec("sgool.lab") is None:
        return run(arguments)
    from sgool.lab import commands

    return run(arguments, commands.add)


if __name__ == "__main__":
    sys.exit(main())
