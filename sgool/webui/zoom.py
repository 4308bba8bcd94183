"""Zoom in the WebUI: places of a finished image are painted again with the WebUI's own inpainting."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from modules import devices, errors, shared
from PIL import Image
from torch import Tensor

from sgool import pictures
from sgool.errors import SgoolError, out_of_memory
from sgool.generate import Critics
from sgool.guidance.prompt import clean_prompt
from sgool.result import Stop
from sgool.webui import interrupts, masks, messages, models
from sgool.webui.inpaint import Area, Inpainter
from sgool.webui.isolation import random_numbers
from sgool.webui.progress import ZoomBar
from sgool.webui.records import Run, ZoomedPlace, ZoomOutcome
from sgool.webui.refine import Refiner
from sgool.zoom import Picture, Place, Verdict, Zoomed, find_places, zoom_in


def zoom(p: Any, run: Run, image: Image.Image) -> Image.Image:
    """The finished image that p has at hand, with places painted again where that made it better.

    Returns the very image where nothing did; whatever fails, no image is lost.
    """
    work = Zoom(p, run, image)
    if interrupts.stopped() or work.number in run.stopped:
        work.say_stopped()
        return image
    with work.told():
        return work.zoomed()
    return image


class Zoom:
    """One image's zoom. number: the image's within the generation; picture: its pixels [1, 3, H, W] in [0, 1]."""

    def __init__(self, p: Any, run: Run, image: Image.Image) -> None:
        self.p = p
        self.run = run
        self.image = image
        self.number = p.iteration * p.batch_size + p.batch_index
        self.prompt = p.all_prompts[self.number]
        plain = np.array(image.convert("RGB"))
        self.picture = pictures.to_tensor(plain).to(devices.device)
        self.mask = masks.of_user(p, image.size)

    def zoomed(self) -> Image.Image:
        """The image with what has been kept. Raises what makes the whole zoom fail."""
        settings = self.run.settings
        if not clean_prompt(self.prompt) and not settings.region_prompt:
            raise SgoolError("it needs a prompt that says what the image should show.")
        bar = ZoomBar(self.p, settings, self._label())
        with random_numbers(), bar, models.critics(settings) as loaded:
            critics = masks.looking(self.p, self.run, loaded, self.image.size)
            refiner = Refiner(critics, settings, bar, lambda sentence: self.tell(sentence, note=False))
            paint = WebuiPaint(self, bar, refiner)
            # Inside the WebUI's autocast the critics would be cast, too.
            with devices.without_autocast():
                result = zoom_in(self._picture(), critics, settings, paint, bar)
                if refiner.unsupported:
                    self.tell(f"Places are only painted again: {refiner.unsupported}")
                if shared.state.skipped:
                    self.run.stopped.update(self._batch())
                    self.say_stopped()
                    return self.image
                return self._settle(result, critics)

    def _picture(self) -> Picture:
        mask = None
        if self.run.settings.zoom_by == "mask":
            mask = masks.of_request(self.p, self.run.mask, self.image.size)
            mask = self.mask if mask is None else mask
        return Picture(self.picture, self.prompt, mask=mask, within=self.mask)

    def _settle(self, result: Zoomed, critics: Critics) -> Image.Image:
        """Remember what has come of it, tell it, and give the image."""
        if result.error is not None:
            raise result.error
        repaints = result.repaints
        if result.note:
            self.tell(result.note)
        for repaint in repaints:
            print(f"SGOOL: {self._label()}zoom, {repaint}")
        for repaint in repaints:
            if repaint.error is not None:
                self.tell(messages.not_painted(repaint, self.run.settings.memory))
                _report(repaint.error)
        if not repaints:
            self.tell(self._nothing_found(critics))
        if shared.state.interrupted:
            done = sum(repaint.verdict is not Verdict.STOPPED for repaint in repaints)
            self.run.stopped.update(self._batch())
            self.tell(f"SGOOL's zoom was interrupted after {done} of {len(repaints)} places.")
        after = pictures.to_uint8(result.image)
        with torch.no_grad():
            saliency = critics.detector.of(self.prompt)(result.image)
        self.run.zooms[self.number] = ZoomOutcome(
            before=pictures.to_uint8(self.picture),
            after=after,
            saliency=saliency.half().cpu(),
            places=tuple(map(ZoomedPlace.of, repaints)),
            critic=critics.selector.name,
        )
        if not result.kept:
            return self.image
        painted = Image.fromarray(after)
        if "A" in self.image.getbands():
            painted.putalpha(self.image.getchannel("A"))
        return painted

    def _nothing_found(self, critics: Critics) -> str:
        """Why there is no place."""
        anywhere = self.run.settings.changed(zoom_largest=1.0, zoom_places=1)
        if self.run.settings.zoom_largest < 1 and find_places(self._picture(), critics, anywhere):
            return "SGOOL's zoom paints nothing again, because all places are too large already."
        where = " in your mask" if self.mask is not None else ""
        return f"SGOOL's zoom found no place{where} to paint again."

    def say_stopped(self) -> None:
        """The image is the one without zoom, because the user has stopped SGOOL; silent where that has been said."""
        if self.number in self.run.stopped and self.number not in self.run.notes:
            word = "skipped" if shared.state.skipped else "interrupted"
            self.tell(f"SGOOL's zoom was {word}, so this is the image without it.")

    def tell(self, sentence: str, *, note: bool = True) -> None:
        messages.tell(self.p, self.run, [self.number], sentence, note=note)

    @contextmanager
    def told(self) -> Iterator[None]:
        """A failure in it is told in one sentence."""
        try:
            yield
        except Stop:
            self.run.stopped.update(self._batch())
            self.say_stopped()
        except Exception as error:
            self.tell(messages.no_zoom(error))
            _report(error)

    def _batch(self) -> range:
        """The numbers of the images of the batch at hand."""
        first = self.p.iteration * self.p.batch_size
        return range(first, first + self.p.batch_size)

    def _label(self) -> str:
        count = len(self.p.all_seeds)
        return f"image {self.number + 1}/{count}, " if count > 1 else ""


class WebuiPaint:
    """Paints a place with the WebUI's inpainting, and then improves it as the settings say; see `sgool.zoom.Paint`.

    Nothing outside the place changes by one bit.
    """

    def __init__(self, work: Zoom, bar: ZoomBar, refiner: Refiner) -> None:
        self.work = work
        self.bar = bar
        self.refiner = refiner
        self.inpainter = Inpainter(work.p, work.number, work.run.settings.zoom_strength, bar.count)

    def __call__(self, image: Tensor, place: Place, number: int) -> Tensor:
        whole = Image.fromarray(pictures.to_uint8(image))
        improve = None
        if self.work.run.settings.zoom_iterations and not self.refiner.unsupported:
            improve = lambda inner, painted: self.refiner.improve(inner, painted, place)  # noqa: E731
        area = Area.of(place.region, whole.size)
        painted = pictures.to_tensor(np.array(self.inpainter.paint(whole, area, place.prompt, number, improve)))
        region = place.region
        rows, columns = slice(region.top, region.top + region.height), slice(region.left, region.left + region.width)
        result = image.clone()
        result[..., rows, columns] = painted.to(image)[..., rows, columns]
        return result


def _report(error: Exception) -> None:
    """With its traceback, where it is a bug."""
    if not isinstance(error, SgoolError) and not out_of_memory(error):
        errors.report(f"SGOOL's zoom failed: {error!r}", exc_info=error.__traceback__ is not None)
