"""The accordion in txt2img and img2img, drawn from what the settings say about themselves."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass, field
from typing import Any

import gradio as gr
from modules.ui_components import InputAccordion

from sgool import cost
from sgool.guidance import CRITICS
from sgool.presets import AIMS, METHODS, PRESET_FIELDS, PRESETS
from sgool.settings import DEFAULTS, Settings
from sgool.webui import infotext
from sgool.webui.arguments import WEBUI

FIRST = ("", "Zoom")
"""The groups that are seen at first."""

MORE = ("Batch", "Zoom details", "Sampling", "Regions", "Critics")
"""The groups that are folded away under "More", in this order."""

EXPERT = "Expert"
"""The group that has a fold of its own."""

PRESET_WORDS = {
    "Detail": "For small things",
    "Quick": "A first look",
    "Balanced": "The default",
    "Thorough": "For an image that is worth it",
    "Paper": "As the paper did it, with EDICT, all the way from the noise and without stopping early",
}

HIDDEN = {"txt2img": "as_uploaded", "img2img": "start"}
"""What a tab does not show: txt2img has no picture, and img2img always starts from one."""

PLACEHOLDERS = {"region_prompt": "empty: the main prompt; [SEP] between regions"}

JS = "_js" if gr.__version__.startswith("3.") else "js"
"""How gradio calls the JavaScript of an event; 3 is AUTOMATIC1111's and reForge's."""

WIDTH = 240
"""Pixels that a control takes at least: where two have no room beside each other, one goes below."""

_ZOOM = ("zoom_places", "zoom_strength", "zoom_iterations")

COUNTED = tuple(
    dict.fromkeys((*PRESET_FIELDS, "candidates", "start", "method", "way_back", "render", "zoom", *_ZOOM, "best"))
)
"""The settings by which the page tells which preset is in force and what a run costs."""

AIM = "Improve for"
"""The label of the choice of three that sets the guide."""

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
            if name == HIDDEN[self.tab]:
                control.visible = False
            self.controls[name] = control

    def draw_group(self, group: str) -> None:
        """Two in a row; a text has a row to itself, and so has the switch of a group."""
        row: list[str] = []
        for name in [name for name, about in WEBUI.items() if about.group == group]:
            long = _is_long_text(name) or name == group.lower()
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
        with enabled.extra():
            gr.HTML(_about(tab), elem_classes=["sgool-about"])
        gr.HTML("SGOOL is off. Tick the box beside its name to use it.", elem_classes=["sgool-off"])
        with gr.Row(elem_id=f"sgool_{tab}_presets", elem_classes=["sgool-presets"]):
            buttons = {
                name: gr.Button(name, size="sm", elem_id=f"sgool_{tab}_preset_{name.lower()}", tooltip=_tooltip(name))
                for name in PRESETS
            }
        aim = _aim(tab)
        made.draw_group("")
        with gr.Group(elem_id=f"sgool_{tab}_zooming", elem_classes=["sgool-zooming"]):
            made.draw_group("Zoom")
        with gr.Accordion("More", open=False, elem_id=f"sgool_{tab}_more"):
            for group in MORE:
                with gr.Group(elem_id=f"sgool_{tab}_{group.lower().replace(' ', '_')}"):
                    gr.Markdown(f"**{group}**")
                    made.draw_group(group)
        with gr.Accordion(EXPERT, open=False, elem_id=f"sgool_{tab}_{EXPERT.lower()}"):
            made.draw_group(EXPERT)
    for name, button in buttons.items():
        values = _preset(name)
        outputs = [made.controls[key] for key in PRESET_FIELDS]
        button.click(lambda values=values: values, inputs=[], outputs=outputs, show_progress=False)
    made.controls["method"].input(
        lambda method: [METHODS[method].get(key, DEFAULTS[key]) for key in METHOD_FIELDS],
        inputs=[made.controls["method"]],
        outputs=[made.controls[key] for key in METHOD_FIELDS],
        show_progress=False,
    )
    _join(aim, made.controls["guide"])
    _tell_the_page(made)
    ordered = {name: made.controls[name] for name in WEBUI}
    pasted: list[Any] = [(enabled, infotext.paste_enabled)]
    pasted += [(control, infotext.paste(name)) for name, control in ordered.items()]
    return Controls([enabled, *ordered.values()], pasted)


def _aim(tab: str) -> Any:
    """The choice of three, and what the second costs."""
    taste = CRITICS[AIMS["people's taste"]]
    cost_of_taste = f"a download of {taste.download:.0f} GB, and {taste.memory:.1f} GiB of the GPU for its weights"
    return gr.Radio(
        choices=list(AIMS),
        label=AIM,
        value=next(name for name, guide in AIMS.items() if guide == DEFAULTS["guide"]),
        elem_id=f"sgool_{tab}_aim",
        tooltip=f"the prompt: CLIP; people's taste: HPSv2.1 ({cost_of_taste}); others are in More, Guide",
        info=f"people's taste: {cost_of_taste}",
        min_width=WIDTH,
    )


def _join(aim: Any, guide: Any) -> None:
    """A choice of three sets the guide, and a guide of another kind leaves none chosen. No request is made."""
    told, found = json.dumps(AIMS), json.dumps({guide: name for name, guide in AIMS.items()})
    aim.input(fn=None, inputs=[aim], outputs=[guide], **{JS: f"(aim) => ({told})[aim]"})
    guide.change(fn=None, inputs=[guide], outputs=[aim], **{JS: f"(guide) => ({found})[guide] ?? null"})


def _tell_the_page(made: _Made) -> None:
    """javascript/sgool.js gets the settings when the page is loaded and when one changes. No request is made."""
    inputs = [made.controls[name] for name in COUNTED]
    for event in (gr.context.Context.root_block.load, *(control.change for control in inputs)):
        event(fn=None, inputs=inputs, outputs=[], **{JS: f"(...values) => sgoolSettings('{made.tab}', values)"})


def _about(tab: str) -> str:
    """The line under the title, and for javascript/sgool.js what it needs to keep the line true."""
    start = "image" if tab == "img2img" else DEFAULTS["start"]
    told = {
        "fields": COUNTED,
        "start": start if tab == "img2img" else None,
        "presets": {name: dict(zip(PRESET_FIELDS, _preset(name), strict=True)) for name in PRESETS},
        "evaluations": cost.EVALUATIONS,
        "update": cost.UPDATE,
        "followed": cost.FOLLOWED,
        "mostSteps": cost.MOST_STEPS,
        "slow": cost.SLOW,
        "does": cost.DOES,
    }
    does, words = cost.line(Settings(start=start))
    return (
        f'<span data-sgool="{html.escape(json.dumps(told))}"><span class="sgool-does">{html.escape(does)}</span>'
        f'<span class="sgool-and">; </span><span class="sgool-cost">{html.escape(words)}</span></span>'
    )


def _control(name: str, elem_id: str) -> Any:
    about = WEBUI[name]
    common = {
        "label": about.label,
        "value": DEFAULTS[name],
        "elem_id": elem_id,
        "tooltip": about.help,
        "min_width": WIDTH,
    }
    if isinstance(DEFAULTS[name], bool):
        return gr.Checkbox(**common)
    if about.choices:
        short = len(about.choices) <= 3 and len("".join(about.choices)) <= 24
        return (gr.Radio if short else gr.Dropdown)(choices=list(about.choices), **common)
    if about.suggestions:
        return gr.Dropdown(choices=list(about.suggestions), allow_custom_value=True, **common)
    if about.slider:
        low, high, step = about.slider
        return gr.Slider(minimum=low, maximum=high, step=step, **common)
    return gr.Textbox(lines=1, max_lines=20, placeholder=PLACEHOLDERS[name], **common)


def _is_long_text(name: str) -> bool:
    about = WEBUI[name]
    return isinstance(DEFAULTS[name], str) and not about.choices and not about.suggestions


def _preset(name: str) -> list[Any]:
    """What a preset's button sets, in the order of PRESET_FIELDS."""
    return [PRESETS[name].get(key, DEFAULTS[key]) for key in PRESET_FIELDS]


def _tooltip(preset: str) -> str:
    settings = Settings.of(PRESETS[preset])
    words = cost.in_words(cost.images(settings))
    if not settings.iterations:
        return f"{PRESET_WORDS[preset]}: at most {settings.zoom_places} places are painted again, nothing else; {words}"
    return (
        f"{PRESET_WORDS[preset]}: {settings.iterations} iterations of {settings.steps} steps, "
        f"{settings.cutouts} cutouts; {words}"
    )
