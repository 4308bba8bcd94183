"""Controls that remember what they were made with."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

__version__ = "3.41.2"
made: list[Block] = []


class Block:
    def __init__(self, value: Any = None, **options: Any) -> None:
        self.value = value
        self.label = options.get("label")
        self.elem_id = options.get("elem_id")
        self.options = options
        self.clicked: dict[str, Any] = {}
        self.chosen: dict[str, Any] = {}
        self.changed: dict[str, Any] = {}
        self.loaded: dict[str, Any] = {}
        made.append(self)

    def __enter__(self) -> Block:
        return self

    def __exit__(self, *error: Any) -> None:
        pass

    def click(self, fn: Any, **wiring: Any) -> None:
        self.clicked = {"fn": fn, **wiring}

    def input(self, fn: Any, **wiring: Any) -> None:
        self.chosen = {"fn": fn, **wiring}

    def load(self, fn: Any, **wiring: Any) -> None:
        self.loaded = {"fn": fn, **wiring}

    def change(self, fn: Any, **wiring: Any) -> None:
        self.changed = {"fn": fn, **wiring}


class Checkbox(Block): ...


class Slider(Block): ...


class Radio(Block): ...


class Dropdown(Block): ...


class Textbox(Block): ...


class Button(Block): ...


class HTML(Block): ...


class Markdown(Block): ...


class Row(Block): ...


class Column(Block): ...


class Group(Block): ...


class Accordion(Block): ...


context = SimpleNamespace(Context=SimpleNamespace(root_block=Block()))
