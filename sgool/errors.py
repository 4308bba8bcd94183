"""The one exception that is shown to users as a sentence instead of a traceback."""

from __future__ import annotations


class SgoolError(ValueError):
    """Something the user can understand and mend; its message is one full sentence."""
