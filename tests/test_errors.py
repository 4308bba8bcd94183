"""What is told of an error that another library raised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgool.errors import brief


class Evil:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("evil"),))


def test_a_reason_is_one_line_and_cut_after_a_word() -> None:
    assert brief(OSError("no\n  route\tto host")) == "no route to host"
    assert brief(RuntimeError("size mismatch for token_embedding"), 25) == "size mismatch for..."
    assert brief(RuntimeError("size mismatch for token_embedding"), 20) == "size mismatch for..."
    assert brief(RuntimeError("word " * 59 + "words")) == "word " * 59 + "words"
    assert brief(RuntimeError("x" * 400)) == "x" * 297 + "..."
    assert brief(TimeoutError()) == "TimeoutError"


def test_nobody_is_advised_to_load_without_the_safeguard(tmp_path: Path) -> None:
    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(Exception, match="weights_only") as caught:
        torch.load(tmp_path / "evil.pth", weights_only=True)
    assert brief(caught.value) == "it holds more than plain tensors, so it is not loaded"
