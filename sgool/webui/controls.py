"""The accordion in txt2img and img2img, drawn from the one table of parameters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from modules.ui_components import InputAccordion

from sgool.settings import PRESET_FIELDS, PRESETS, SETTINGS, Setting
from sgool.webui import infotext
from sgool.webui.arguments import WEBUI_SETTINGS

FIRST = ("iterations", "saliency_weight", "start", "saliency", "region_prompt")
"""What is seen at first; the rest is folded away in these groups."""

FOLDED: dict[str, tuple[str, ...]] = {
    "Sampling": ("method", "sampler", "steps", "strength", "candidates", "memory"),
    "Regions": ("max_regions", "threshold", "min_size", "padding", "refresh", "cutouts", "region_match"),
    "Update": ("rule", "learning_rate", "warmup", "regularisation", "patience"),
    "CLIP": ("clip_model", "clip_tag", "selector_model", "selector_tag"),
}

_RANGES: dict[str, tuple[float, float, float]] = {
    "iterations": (0, 100, 1),
    "steps": (2, 100, 1),
    "candidates": (1, 16, 1),
    "strength": (0.05, 1, 0.05),
    "saliency_weight": (0, 1, 0.05),
    "max_regions": (1, 16, 1),
    "threshold": (0.05, 0.95, 0.05),
    "min_size": (0.05, 1, 0.05),
    "padding": (0, 1, 0.05),
    "refresh": (1, 50, 1),
    "cutouts": (0, 64, 1),
    "learning_rate": (0, 1, 0.01),
    "warmup": (0, 20, 1),
    "regularisation": (0, 1, 0.05),
    "patience": (0, 50, 1),
}
"""Of the sliders: from, to, step. The API takes all that the table of parameters allows."""

_PLACEHOLDERS = {"region_prompt": "what shall be seen where people look; empty: the main prompt"}


@dataclass
class Controls:
    inputs: list[Any]
    infotext_fields: list[Any]


@dataclass
class _Made:
    tab: str
    controls: dict[str, Any] = field(default_factory=dict)

    def draw(self, *names: str) -> None:
        for name in names:
            control = _control(name, WEBUI_SETTINGS[name], f"sgool_{self.tab}_{name}")
            if name == "start" and self.tab == "img2img":
                control.visible = False  # there it is always the image
            self.controls[name] = control


def build(tab: str) -> Controls:
    """Draw the accordion of one tab (txt2img or img2img). elem_ids: sgool_<tab>, and sgool_<tab>_<name> inside."""
    made = _Made(tab)
    with InputAccordion(False, label="SGOOL", elem_id=f"sgool_{tab}") as enabled:
        with gr.Row(elem_id=f"sgool_{tab}_presets", elem_classes=["sgool-presets"]):
            buttons = {
                name: gr.Button(name, size="sm", elem_id=f"sgool_{tab}_preset_{name.lower()}", tooltip=_tooltip(name))
                for name in PRESETS
            }
        with gr.Row():
            made.draw("iterations", "saliency_weight")
        with gr.Row():
            made.draw("start", "saliency")
        made.draw("region_prompt")
        with gr.Accordion("More", open=False, elem_id=f"sgool_{tab}_more"):
            for title, names in FOLDED.items():
                with gr.Group(elem_id=f"sgool_{tab}_{title.lower()}"):
                    gr.Markdown(f"**{title}**")
                    for i in range(0, len(names), 2):
                        with gr.Row():
                            made.draw(*names[i : i + 2])
        gr.HTML(value="", label="Last run", elem_id=f"sgool_{tab}_view")
    for name, button in buttons.items():
        values = [PRESETS[name].get(key, SETTINGS[key].default) for key in PRESET_FIELDS]
        outputs = [made.controls[key] for key in PRESET_FIELDS]
        button.click(lambda values=values: values, inputs=[], outputs=outputs, show_progress=False)
    ordered = {name: made.controls[name] for name in WEBUI_SETTINGS}
    pasted: list[Any] = [(enabled, infotext.paste_enabled)]
    pasted += [(control, infotext.paste(name)) for name, control in ordered.items()]
    return Controls([enabled, *ordered.values()], pasted)


def _control(name: str, setting: Setting, elem_id: str) -> Any:
    common = {"label": setting.label, "value": setting.default, "elem_id": elem_id, "tooltip": setting.help}
    if setting.choices:
        kind = gr.Radio if len(setting.choices) <= 3 and name != "saliency" else gr.Dropdown
        return kind(choices=list(setting.choices), **common)
    if name in _RANGES:
        low, high, step = _RANGES[name]
        return gr.Slider(minimum=low, maximum=high, step=step, **common)
    # Only what can be long gets a box that grows.
    return gr.Textbox(
        lines=1, max_lines=20 if name in _PLACEHOLDERS else 1, placeholder=_PLACEHOLDERS.get(name, ""), **common
    )


def _tooltip(preset: str) -> str:
    values = {name: PRESETS[preset].get(name, SETTINGS[name].default) for name in PRESET_FIELDS}
    return ", ".join(f"{SETTINGS[name].label}: {value}" for name, value in values.items())
