"""Routes of the extension: GET /sgool/v1/schema, /version, /critics, /detectors, and with a page /runs for its view."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response

from sgool import __version__
from sgool.guidance import listed
from sgool.presets import PRESETS
from sgool.saliency import DETECTORS
from sgool.settings import DEFAULTS
from sgool.webui.arguments import WEBUI
from sgool.zoom import Verdict

if TYPE_CHECKING:
    from sgool.result import Phrases
    from sgool.webui.records import Entry, Outcome, ZoomOutcome

_TYPES = {int: "integer", float: "number", str: "string", bool: "boolean"}


def add_routes(demo: Any, app: FastAPI) -> None:
    """Called by the WebUI when its server has started."""
    app.add_api_route("/sgool/v1/version", version, methods=["GET"])
    app.add_api_route("/sgool/v1/schema", schema, methods=["GET"])
    app.add_api_route("/sgool/v1/critics", critics, methods=["GET"])
    app.add_api_route("/sgool/v1/detectors", detectors, methods=["GET"])
    if demo is None:  # --nowebui: nobody to show a run to, and --api-auth knows nothing of our routes
        return
    users = [Depends(_signed_in)]
    app.add_api_route("/sgool/v1/runs/{run}", shown, methods=["GET"], dependencies=users)
    app.add_api_route("/sgool/v1/runs/{run}/{index}/{name}.png", picture, methods=["GET"], dependencies=users)


def version() -> dict[str, str]:
    return {"version": __version__}


def schema() -> dict[str, Any]:
    """The fields of `args[0]` as JSON Schema, and the order of the positional `args`."""
    properties: dict[str, Any] = {
        "enabled": {"type": "boolean", "default": True},
        "preset": {"type": "string", "enum": list(PRESETS), "description": "sets what the other fields do not"},
        "zoom_mask": _mask("zoom_by mask", "where zoom may paint"),
        "look_at": _mask("saliency mask", "where to look"),
    }
    for name, about in WEBUI.items():
        default = DEFAULTS[name]
        entry = {"type": _TYPES[type(default)], "default": default, "title": about.label, "description": about.help}
        limits = {"minimum": about.low, "exclusiveMinimum": about.above, "maximum": about.high}
        if about.choices:
            entry["enum"] = list(about.choices)
        if about.suggestions:
            entry["examples"] = list(about.suggestions)
        properties[name] = entry | {key: value for key, value in limits.items() if value is not None}
    return {
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "positional": ["enabled", *WEBUI],
        "presets": PRESETS,
    }


def _mask(beside: str, where: str) -> dict[str, Any]:
    told = f"with {beside}: a PNG or JPEG of the image's size, white {where}"
    return {"type": "string", "contentEncoding": "base64", "description": told}


def critics() -> list[dict[str, Any]]:
    """What `python -m sgool critics --json` prints."""
    from sgool.webui import models

    return listed(models.models_dir())


def detectors() -> list[dict[str, str]]:
    return [{"name": name, "description": each.description} for name, each in DETECTORS.items()]


def shown(run: str) -> dict[str, Any]:
    """What a run has come to, for the view of the page that made it; 404 where it is no longer kept.

    Its pictures are below /sgool/v1/runs/{run}. kept: of a longer run only this many images, the first, are here.
    """
    from sgool.webui import gallery

    images = [
        {
            **_of_the_whole(entry.outcome),
            "zoom": _of_the_zoom(entry.zoom),
            "finished": _of_the_finished(entry),
            "phrases": _of_the_phrases(entry.phrases),
        }
        for entry in _entries(run)
    ]
    return {"images": images, "kept": gallery.KEPT}


def _of_the_whole(outcome: Outcome | None) -> dict[str, Any]:
    """What became of the image as a whole; {} where only a zoom ran."""
    if outcome is None:
        return {}
    return {
        "scored_by": outcome.critic,
        "score_before": outcome.score_before,
        "score_resampled": outcome.score_resampled,
        "score_after": outcome.score_after,
        "score_best": outcome.result.best_score,
        "best_iteration": outcome.best_iteration,
        "iterations": outcome.result.iterations,
        "regions": len(outcome.regions),
        "sampled": outcome.sampled,
        "rendered": outcome.rendered,
        "by_yours": outcome.by_yours,
        "message": outcome.result.ended,
        "seconds": outcome.seconds,
    }


def _of_the_zoom(zoom: ZoomOutcome | None) -> dict[str, Any] | None:
    """What became of each place, and which pictures of it there are (place-1-before, place-1-after)."""
    if zoom is None:
        return None
    places = [
        {
            "name": place.name,
            "text": place.text,
            "verdict": place.verdict.value,
            "kept": place.verdict is Verdict.KEPT,
            "before": place.before,
            "after": place.after,
            "region": {name: getattr(place.region, name) for name in ("left", "top", "width", "height")},
            "pictures": [
                when
                for when, picture in (("before", place.picture_before), ("after", place.picture_after))
                if picture is not None
            ],
        }
        for place in zoom.places
    ]
    return {"kept": zoom.kept, "places": places, "scored_by": zoom.critic}


def _of_the_finished(entry: Entry) -> dict[str, Any] | None:
    """In the best of a batch: the finished image's score, and its rank in words, or ""."""
    if entry.score is None:
        return None
    return {"score": entry.score.value, "rank": entry.rank, "scored_by": entry.score.critic}


def _of_the_phrases(phrases: Phrases | None) -> dict[str, Any] | None:
    """How much of each phrase the image shows, and which maps of it there are (phrase-1-before, phrase-1-after)."""
    if phrases is None:
        return None
    found = [
        {
            **told,
            "maps": [
                when for when, where in (("before", each.map_before), ("after", each.map_after)) if where is not None
            ],
        }
        for told, each in zip(phrases.as_list(), phrases.found, strict=True)
    ]
    return {"found": found, "measured_by": phrases.critic, "note": phrases.note}


def picture(run: str, index: int, name: str) -> Response:
    """A picture of a run, from memory."""
    from sgool.webui import gallery

    entries = _entries(run)
    entry = entries[index] if 0 <= index < len(entries) else None
    there = gallery.all_of(entry) if entry else {}
    if entry is None or name not in there:
        raise HTTPException(404, "There is no such picture.")
    buffer = io.BytesIO()
    there[name](entry).save(buffer, "PNG")
    return Response(buffer.getvalue(), media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})


def _entries(run: str) -> list[Entry]:
    from sgool.webui import gallery

    if run not in gallery.runs:
        raise HTTPException(404, "This run is no longer kept.")
    return gallery.runs[run]


def _signed_in(request: Request) -> None:
    """Where the page asks for a password (--gradio-auth), so does this."""
    app = request.app
    if getattr(app, "auth", None) is None:
        return
    own = f"-{app.cookie_id}" if getattr(app, "cookie_id", "") else ""  # since gradio 4
    token = request.cookies.get(f"access-token{own}") or request.cookies.get(f"access-token-unsecure{own}")
    if token not in getattr(app, "tokens", {}):
        raise HTTPException(401, "Not authenticated")
