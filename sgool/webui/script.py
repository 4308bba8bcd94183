"""The Script that the WebUI calls: at which moment what happens."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modules import scripts

from sgool.errors import SgoolError
from sgool.presets import unused
from sgool.result import Stop
from sgool.settings import Settings
from sgool.webui import infotext
from sgool.webui.arguments import WEBUI, parse

if TYPE_CHECKING:
    from sgool.webui.records import Run

_RUN = "sgool_run"
OVERRIDES = "sgool_overrides"
"""Attributes of the processing object: the run (only while SGOOL is on), and what an XYZ plot sets."""


class Refused(Exception):
    """Why an image is left as it is, in one sentence."""


class SgoolScript(scripts.Script):
    def title(self) -> str:
        return "SGOOL"

    def show(self, is_img2img: bool) -> Any:
        return scripts.AlwaysVisible

    def ui(self, is_img2img: bool) -> list[Any]:
        from sgool.webui import controls

        made = controls.build("img2img" if is_img2img else "txt2img")
        self.infotext_fields = made.infotext_fields
        return made.inputs

    def process(self, p: Any, *args: Any) -> None:
        """Check what is asked for; anything that an earlier generation left on p goes.

        Other scripts generate with shallow copies of p (the plot), or call the hooks with one in the middle of a
        generation (After Detailer): so p gets an infotext of its own, and a run belongs to one object.
        """
        vars(p).pop(_RUN, None)
        p.extra_generation_params = infotext.without_ours(p.extra_generation_params)
        if getattr(p, "_ad_inner", False):  # After Detailer's own pass over a face: the image has had its turn
            return
        try:
            settings = parse(args, getattr(p, OVERRIDES, None), loaded_model(p))
            if settings is None:
                return
            from sgool.webui import masks

            given = masks.given(args, settings)
        except SgoolError as error:
            from sgool.webui.messages import sentence

            self._refuse(p, f"SGOOL is not used: {sentence(error)}")
            return
        try:
            settings = settings.changed(**({"start": "image"} if self.is_img2img else {"as_uploaded": False}))
            run = self._begin(p, settings, given)
        except Refused as told:
            self._refuse(p, str(told))
            if settings.as_uploaded:  # the picture still comes out as it is
                from sgool.webui.records import Run

                told_all = dict.fromkeys(range(len(p.all_seeds)), p.extra_generation_params[infotext.NOTE])
                left = settings.changed(iterations=0, zoom=False, best=False)
                self._take(p, Run(left, weakref.ref(p), whole=False, notes=told_all))
            return
        self._take(p, run)
        infotext.write(p, run)

    def _take(self, p: Any, run: Run) -> None:
        setattr(p, _RUN, run)
        if run.settings.as_uploaded:
            from sgool.webui import uploaded

            p.inpainting_fill = uploaded.KEEP
        if run.settings.best:
            from sgool.webui import best

            best.begin(p, run)

    def _begin(self, p: Any, settings: Settings, given: Mapping[str, Any]) -> Run:
        """The run of these settings, with its networks here. given: the API's masks. Raises Refused."""
        from sgool.webui import masks
        from sgool.webui.batch import improves, nothing_to_do
        from sgool.webui.records import Run

        upscaled = getattr(p, "firstpass_image", None) is not None
        if upscaled and not settings.zoom and not settings.best:
            raise Refused("SGOOL leaves an image that is only upscaled as it is.")
        notes: dict[int, str] = {}
        mask, look_at = given.get("zoom_mask"), given.get("look_at")
        if settings.zoom and settings.zoom_by == "mask" and mask is None and not masks.is_inpainting(p):
            lacking = "SGOOL's zoom on a mask needs a mask: paint one in img2img, Inpaint."
            settings = settings.changed(zoom=False)
            if (not improves(settings) or upscaled) and not settings.best:
                raise Refused(lacking)
            self._note(p, lacking)
            notes = dict.fromkeys(range(len(p.all_seeds)), lacking)
        looks = settings.saliency == "mask" and (settings.zoom or (improves(settings) and not upscaled))
        if looks and look_at is None and not masks.is_inpainting(p):
            raise Refused("SGOOL looks where a mask is white, and there is none: paint one in img2img, Inpaint.")
        if told := nothing_to_do(settings):
            raise Refused(told)
        if not any(prompt.strip() for prompt in p.all_prompts):
            raise Refused("SGOOL needs a prompt that says what the image should show.")
        if idle := unused(settings, loaded_model(p)):
            where = f"method {settings.method}" + (" and a start from the image" if settings.start == "image" else "")
            p.comment(f"SGOOL: with {where} these do nothing: {', '.join(WEBUI[name].label for name in idle)}.")
        if settings.render == "yours" and improves(settings) and not upscaled:
            from sgool import cost

            if not cost.follows(settings, p.sampler_name, p.steps) and not cost.renders(settings, "", p.steps):
                self._note(
                    p,
                    "SGOOL keeps the image as optimized: your own sampler can only sample noise, which is what a "
                    "run changes with a start from the seed and Start strength 1.",
                )
        if told := _fetched(settings):  # before the first pass, which may take minutes
            raise Refused(told)
        return Run(
            settings, weakref.ref(p), whole=improves(settings) and not upscaled, mask=mask, look_at=look_at, notes=notes
        )

    def process_before_every_sampling(self, p: Any, *args: Any, **kwargs: Any) -> None:
        """Keep the seed's noise. With hires fix this sampler's result is where SGOOL comes in."""
        run = _run(p)
        if run is None:
            return
        from sgool.webui import follow, uploaded
        from sgool.webui.hosts import host

        host().sampling(p)
        if getattr(p, "is_hr_pass", False):
            return

        if run.settings.as_uploaded:
            uploaded.sample_nothing(p)
            run.uploaded = uploaded.given(p)
        if not run.whole:
            return
        run.noise = kwargs["noise"].detach().clone()
        if follow.wanted(p, run.settings):
            run.recording = follow.Recording(p)
        if getattr(p, "enable_hr", False):
            _improve_after(p, run)

    def post_sample(self, p: Any, ps: Any, *args: Any) -> None:
        run = _run(p)
        if run is None or not run.whole or getattr(p, "enable_hr", False):
            return
        if getattr(ps.samples, "already_decoded", False):
            return
        from sgool.webui.batch import improve

        ps.samples = improve(p, run, ps.samples)

    def postprocess_batch(self, p: Any, *args: Any, **kwargs: Any) -> None:
        run = _run(p)
        if run is not None and run.settings.as_uploaded:
            from sgool.webui import uploaded

            uploaded.put_back(p, run, kwargs["images"])

    def postprocess_image_after_composite(self, p: Any, pp: Any, *args: Any) -> None:
        run = _run(p)
        if run is not None and run.settings.as_uploaded:
            from sgool.webui import uploaded

            pp.image = uploaded.composed(p, run, pp.image)
        if run is not None and run.settings.best:
            from sgool.webui import best

            best.score(p, run, pp.image)

    def postprocess_image(self, p: Any, pp: Any, *args: Any) -> None:
        """The image is finished, after hires fix: zoom into it."""
        run = _run(p)
        if run is None or not run.settings.zoom:
            return
        from sgool.webui.zoom import zoom

        pp.image = zoom(p, run, pp.image)

    def postprocess(self, p: Any, processed: Any, *args: Any) -> None:
        run = _run(p)
        if run is None:
            return
        from sgool.webui import gallery, interrupts, phrases

        try:
            if run.settings.best:
                from sgool.webui import best

                with best.sorting(p, processed, run):
                    gallery.show(p, processed, run)
            else:
                gallery.show(p, processed, run)
            phrases.measure(p, run)
        finally:
            infotext.settle(p, run, gallery.keep(run))
            if run.interrupted:
                interrupts.resume(p)
            vars(p).pop(_RUN, None)

    def _refuse(self, p: Any, sentence: str) -> None:
        """Below the gallery, in the infotext and in the console."""
        from sgool.webui.messages import without_folder

        self._note(p, sentence)
        p.extra_generation_params[infotext.NOTE] = without_folder(sentence)

    def _note(self, p: Any, sentence: str) -> None:
        """Below the gallery and in the console."""
        p.comment(sentence)
        print(sentence, file=sys.stderr)


def _fetched(settings: Settings) -> str:
    """Download what these settings need; why that could not be, or ""."""
    from sgool.webui import models
    from sgool.webui.messages import failure, sentence

    try:
        models.prepare(settings)
    except Stop:
        return "SGOOL was stopped while it downloaded its networks; what has arrived is kept."
    except SgoolError as error:
        return f"SGOOL is not used: {sentence(error)}"
    except Exception as error:
        return failure(error)
    return ""


def loaded_model(p: Any) -> str:
    """The name of the checkpoint that makes the image, for the defaults of its own that it may have."""
    return str(getattr(getattr(p.sd_model, "sd_checkpoint_info", None), "name_for_extra", ""))


def remember_file(saved: Any) -> None:
    """Which image of a run a file belongs to. Called for every file that the WebUI saves."""
    run = _run(saved.p) if saved.p is not None else None
    if run is not None and hasattr(saved.p, "batch_index"):
        run.files[saved.filename] = saved.p.iteration * saved.p.batch_size + saved.p.batch_index


def add_name_pattern() -> None:
    """Offer [sgool_score] for the names of files."""
    from modules import images

    images.FilenameGenerator.replacements["sgool_score"] = score_in_name


def score_in_name(names: Any) -> Any:
    """[sgool_score] in the pattern of a file's name: of the finished image, in the best of a batch; else nothing."""
    from modules import images

    run = _run(names.p) if names.p is not None and not names.basename else None  # a grid has a basename
    score = run.scores.get(names.p.iteration * names.p.batch_size + names.p.batch_index) if run is not None else None
    return images.NOTHING_AND_SKIP_PREVIOUS_TEXT if score is None else infotext.shown(score)


def _run(p: Any) -> Any:
    run = vars(p).get(_RUN)
    return run if run is not None and run.owner() is p else None


def _improve_after(p: Any, run: Any) -> None:
    """Hires fix goes on right after the first pass, and this sampler object serves the first pass alone."""
    from sgool.webui.batch import improve

    sample = p.sampler.sample

    def sample_and_improve(*args: Any, **kwargs: Any) -> Any:
        return improve(p, run, sample(*args, **kwargs))

    p.sampler.sample = sample_and_improve
