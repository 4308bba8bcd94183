"""The one exception that is shown to users as a sentence instead of a traceback."""

from __future__ import annotations


class SgoolError(ValueError):
    """Something the user can understand and mend; its message is one full sentence."""


class NotRepeatable(SgoolError):
    """The network gave another prediction on the way back than on the way there, so the way back is not the same."""
