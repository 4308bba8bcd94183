"""Records the hooks that a script sees, in order and with their arguments. Used in both the real and the fake WebUI."""

from __future__ import annotations

from typing import Any

events: list[list[Any]] = []
"""For the last generation: [hook, names of its keyword arguments, facts about p and the samples]."""

attributes: set[str] = set()
"""The attributes of p after sampling, and those that it has at the end."""


class Recorder:
    def process(self, p: Any, *args: Any) -> None:
        events.clear()
        _note("process", p, {})

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        _note("process_before_every_sampling", p, kwargs, list(kwargs["noise"].shape))

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        attributes.clear()
        attributes.update(dir(p))
        decoded = getattr(ps.samples, "already_decoded", False)
        _note("post_sample", p, {}, "decoded" if decoded else list(ps.samples.shape))

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        attributes.update(dir(p))
        _note("postprocess", p, {}, len(processed.images))


def _note(hook: str, p: Any, kwargs: dict[str, Any], *facts: Any) -> None:
    state = [bool(getattr(p, name, False)) for name in ("enable_hr", "is_hr_pass")]
    events.append([hook, sorted(set(kwargs) & {"x", "noise", "c", "uc"}), state, *facts])
