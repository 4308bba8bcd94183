"""The folder of an evaluation: each image under a name that says how it was made, beside a record of what came of it.

An image counts once its record is there and its file has the sum that the record says, so a run may be broken off at
any moment. What is torn is made again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sgool import __version__
from sgool.errors import SgoolError
from sgool.lab.evaluate import FORMAT
from sgool.outputs import PREFIX

ABOUT = "evaluation.json"
"""What the folder holds, and of which version."""

IMAGES = "images"

RESULTS, REPORT = "results.csv", "report.html"

Record = dict[str, Any]
"""Of an image: "sha256" of its file, "seconds", "evaluations", "curve", "scores"; or "failure" and "error"."""


class Store:
    """The images of a folder. Raises SgoolError where it cannot be written, or is of another version."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images = folder / IMAGES
        self.about = self._about()
        try:
            self.images.mkdir(exist_ok=True)
            for left in self.images.glob(f"{PREFIX}*"):
                left.unlink()
        except OSError as error:
            raise self._unwritable(error) from error
        self._records: dict[str, Record] = {}

    def _about(self) -> dict[str, Any]:
        """What an earlier run says of the folder, {} where there was none."""
        path = self.folder / ABOUT
        if not path.exists():
            return {}
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            found = about["format"], about["version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SgoolError(f"The file {path} is not an evaluation's: take another folder.") from error
        if found != (FORMAT, __version__):
            raise SgoolError(
                f"The folder {self.folder} holds an evaluation of sgool {found[1]} (format {found[0]}), and this is "
                f"{__version__} (format {FORMAT}): take another folder."
            )
        return dict(about)

    def describe(self, about: Mapping[str, Any]) -> None:
        """Write what the folder holds."""
        self.about = {"format": FORMAT, "version": __version__, **about}
        self.write(ABOUT, json.dumps(self.about, indent=1, allow_nan=False).encode())

    def record(self, key: str) -> Record | None:
        """What came of an image; None where it has not been made, or its file is torn."""
        if key not in self._records:
            found = self._read(key)
            if found is None:
                return None
            self._records[key] = found
        return self._records[key]

    def made(self, key: str) -> bool:
        """Whether there is an image; a failure is none."""
        record = self.record(key)
        return record is not None and "failure" not in record

    def path(self, key: str) -> str:
        """An image's file, relative to the folder."""
        return f"{IMAGES}/{key}.png"

    def content(self, key: str) -> bytes:
        """An image's file."""
        return (self.folder / self.path(key)).read_bytes()

    def save(self, key: str, image: bytes, record: Record) -> None:
        """Keep an image and what came of it; image: b"" for a failure."""
        if image:
            self.write(self.path(key), image)
            record = {**record, "sha256": hashlib.sha256(image).hexdigest()}
        self._keep(key, record)

    def save_scores(self, key: str, scores: Mapping[str, float]) -> None:
        """Add to what is known of an image. A score that is no number is kept as None."""
        record = self.record(key)
        assert record is not None
        new = {name: value if math.isfinite(value) else None for name, value in scores.items()}
        self._keep(key, {**record, "scores": {**record.get("scores", {}), **new}})

    def write(self, name: str, content: bytes) -> None:
        """Put a file into the folder, whole or not at all."""
        path = self.folder / name
        try:
            number, made = tempfile.mkstemp(prefix=PREFIX, dir=path.parent)
            try:
                with open(number, "wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
                os.chmod(made, 0o666 & ~_umask())
                os.replace(made, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(made)
                raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _keep(self, key: str, record: Record) -> None:
        self.write(f"{IMAGES}/{key}.json", json.dumps(record, allow_nan=False).encode())
        self._records[key] = record

    def _read(self, key: str) -> Record | None:
        try:
            record = json.loads((self.images / f"{key}.json").read_bytes())
            if not isinstance(record, dict):
                return None
            if "failure" in record or hashlib.sha256(self.content(key)).hexdigest() == record.get("sha256"):
                return record
        except (OSError, ValueError):
            pass
        return None

    def _unwritable(self, error: OSError) -> SgoolError:
        return SgoolError(f"The output folder {self.folder} cannot be written to: {error.strerror or error}.")


def _umask() -> int:
    """The process's, which temporary files do not follow."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
