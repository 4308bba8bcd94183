from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgool import tiny
from sgool.backends.diffusers import DiffusersBackend, load_backend
from sgool.generate import Guides, load_guides
from sgool.settings import settings


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """The networks are so small that a second thread costs more than it gives."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def backend() -> DiffusersBackend:
    return load_backend("tiny")


@pytest.fixture(scope="session")
def guides() -> Guides:
    return load_guides(settings(tiny.DEFAULTS), Path("unused"))
