"""The paper's evaluation (arXiv 2410.10257): methods, prompt sets, metrics, tables, and a report that opens from disk.

What is done (`plan`), what is kept of it (`store`), who does it (`work`, `cluster`), and what it comes to
(`statistics`, `charts`, `report`). `run` is the whole of it.
"""

from __future__ import annotations

FORMAT = 1
"""Of the folder. Images of another format are not gone on with."""
