"""From the WebUI's prompt language to the plain sentence that CLIP was trained on."""

from __future__ import annotations

import re
from collections.abc import Callable

# \( \) \[ \] \\ are literal characters. Private code points hide them from the parser.
_ESCAPES = {"\\" + char: chr(0xE000 + i) for i, char in enumerate("()[]\\")}
_TAG = re.compile(r"<\w+:[^<>]*>")
_INNERMOST = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")
_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)"
_WEIGHT = re.compile(rf"\s*:\s*{_NUMBER}\s*$")
_BETWEEN = re.compile(r"[,;.]\s+|[,;.]$|\s+and\s+", re.IGNORECASE)
_EDIT = re.compile(rf"^(?:.*:)?([^:]*):\s*{_NUMBER}%?\s*$", re.DOTALL)


def clean_prompt(text: str) -> str:
    """The prompt as plain text, with AUTOMATIC1111 WebUI's syntax resolved.

    `(word:1.3)`, `((word))` and `[word]` become `word`; `<lora:name:1>` and other tags disappear; `BREAK` and `AND`
    (with its weights) become commas; `[from:to:0.5]` becomes the text it ends with; `[a|b]` becomes `a b`; `\\(`
    becomes `(`. White space and commas are tidied.
    """
    text = _TAG.sub(" ", text)
    for escape, code in _ESCAPES.items():
        text = text.replace(escape, code)
    replaced = 1
    while replaced:
        text, replaced = _INNERMOST.subn(_plain, text)
    text = re.sub(r"[()\[\]]", " ", text)  # unbalanced brackets
    parts = [_WEIGHT.sub("", part.rstrip(" ,")) for part in re.split(r"\b(?:AND|BREAK)\b", text)]
    words = [" ".join(piece.split()) for piece in ",".join(parts).split(",")]
    text = ", ".join(word for word in words if word)
    for escape, code in _ESCAPES.items():
        text = text.replace(code, escape[1])
    return text


def _plain(match: re.Match[str]) -> str:
    attention, bracket = match.groups()
    if attention is not None:
        return _WEIGHT.sub("", attention)
    if "|" in bracket:
        return bracket.replace("|", " ")
    edit = _EDIT.match(bracket)
    return edit[1] if edit else bracket


def phrases(text: str) -> list[str]:
    """The phrases of a cleaned prompt: its parts between commas, semicolons, periods and "and", each only once."""
    parts = (part.strip() for part in _BETWEEN.split(text))
    return [part for part in dict.fromkeys(parts) if part]


def split_prompt(text: str, count_tokens: Callable[[str], int], limit: int = 75) -> list[str]:
    """Split `text` into parts of at most `limit` tokens each (without the start and end tokens), in order.

    The text is split at commas. A clause that is too long is split between words, and a word that is too long (or a
    script without spaces) between characters. A short text is returned in a list of one.
    """
    return [part for part in (p.strip(" ,") for p in _pack(text, count_tokens, limit, [",", " ", ""])) if part] or [""]


def _pack(text: str, count: Callable[[str], int], limit: int, separators: list[str]) -> list[str]:
    if not separators or count(text) <= limit:
        return [text]
    separator, *finer = separators
    parts: list[str] = []
    current = ""
    for piece in text.split(separator) if separator else text:
        joined = current + separator + piece if current else piece
        if count(joined) <= limit:
            current = joined
            continue
        *full, last = _pack(piece, count, limit, finer)
        parts += [current, *full] if current else full
        current = last
    return [*parts, current]
