"""``python -m sgool``."""

import sys

from sgool.cli import main

if __name__ == "__main__":
    sys.exit(main())
