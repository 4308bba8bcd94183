"""The accordion in txt2img and img2img, drawn from what the settings say about themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from modules.ui_components import InputAccordion

from sgool.presets import METHODS, PRESET_FIELDS, PRESETS
from sgool.settings import ABOUT, DEFAULTS
from sgool.webui import infotext
from sgool.webui.arguments import WEBUI

FOLDED = ("Sampling", "Regions", "Critics", "Expert")
"""The groups that are folded away under "More", in this order; what is in no group is seen at first."""

METHOD_FIELDS = tuple(dict.fromkeys(name for method in METHODS.values() for name in method if name in WEBUI))


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
            control = _control(name, f"sgool_{self.tab}_{name}")
            if name == "start" and self.tab == "img2img":
                control.visible = False  # there it is always the image
            self.controls[name] = control

    def draw_group(self, group: str) -> None:
        """Two in a row; a text has a row to itself."""
        row: list[str] = []
        for name in [name for name, about in WEBUI.items() if about.group == group]:
            long = _is_long_text(name)
            if row and (long or len(row) == 2):
                self._row(row)
                row = []
            row.append(name)
            if long:
                self._row(row)
                row = []
        if row:
            self._row(row)

    def _row(self, names: list[str]) -> None:
        with gr.Row():
            self.draw(*names)


def build(tab: str) -> Controls:
    """Draw the accordion of one tab (txt2img or img2img). elem_ids: sgool_<tab>, and sgool_<tab>_<name> inside."""
    made = _Made(tab)
    with InputAccordion(False, label="SGOOL", elem_id=f"sgool_{tab}") as enabled:
        with gr.Row(elem_id=f"sgool_{tab}_presets", elem_classes=["sgool-presets"]):
            buttons = {
                name: gr.Button(name, size="sm", elem_id=f"sgool_{tab}_preset_{name.lower()}", tooltip=_tooltip(name))
                for name in PRESETS
            }
        made.draw_group("")
        with gr.Accordion("More", open=False, elem_id=f"sgool_{tab}_more"):
            for group in FOLDED:
                with gr.Group(elem_id=f"sgool_{tab}_{group.lower()}"):
                    gr.Markdown(f"**{group}**")
                    made.draw_group(group)
        gr.HTML(value="", label="Last run", elem_id=f"sgool_{tab}_view")
    for name, button in buttons.items():
        values = [PRESETS[name].get(key, DEFAULTS[key]) for key in PRESET_FIELDS]
        outputs = [made.controls[key] for key in PRESET_FIELDS]
        button.click(lambda values=values: values, inputs=[], outputs=outputs, show_progress=False)
    made.controls["method"].input(
        lambda method: [METHODS[method].get(key, DEFAULTS[key]) for key in METHOD_FIELDS],
        inputs=[made.controls["method"]],
        outputs=[made.controls[key] for key in METHOD_FIELDS],
        show_progress=False,
    )
    ordered = {name: made.controls[name] for name in WEBUI}
    pasted: list[Any] = [(enabled, infotext.paste_enabled)]
    pasted += [(control, infotext.paste(name)) for name, control in ordered.items()]
    return Controls([enabled, *ordered.values()], pasted)


def _control(name: str, elem_id: str) -> Any:
    about = WEBUI[name]
    common = {"label": about.label, "value": DEFAULTS[name], "elem_id": elem_id, "tooltip": about.help}
    if about.choices:
        short = len(about.choices) <= 3 and len("".join(about.choices)) <= 24
        return (gr.Radio if short else gr.Dropdown)(choices=list(about.choices), **common)
    if about.suggestions:
        return gr.Dropdown(choices=list(about.suggestions), allow_custom_value=True, **common)
    if about.slider:
        low, high, step = about.slider
        return gr.Slider(minimum=low, maximum=high, step=step, **common)
    return gr.Textbox(lines=1, max_lines=20, placeholder=about.help, **common)


def _is_long_text(name: str) -> bool:
    about = WEBUI[name]
    return isinstance(DEFAULTS[name], str) and not about.choices and not about.suggestions


def _tooltip(preset: str) -> str:
    values = {name: PRESETS[preset].get(name, DEFAULTS[name]) for name in PRESET_FIELDS}
    return ", ".join(f"{ABOUT[name].label}: {value}" for name, value in values.items())
