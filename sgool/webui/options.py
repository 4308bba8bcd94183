"""Settings > SGOOL."""

from __future__ import annotations

import gradio as gr
from modules import shared

SECTION = ("sgool", "SGOOL")

_NAMES = {
    "before": "the image before SGOOL",
    "saliency": "where people look (saliency map and regions)",
    "loss": "the curve of loss and score",
}


def add() -> None:
    """Register the options; all are off."""
    for verb, does in (("return", "SGOOL: show in the gallery"), ("save", "SGOOL: save beside the image")):
        for name, what in _NAMES.items():
            info = shared.OptionInfo(False, f"{does} {what}", gr.Checkbox, {"interactive": True}, section=SECTION)
            shared.opts.add_option(f"sgool_{verb}_{name}", info)
