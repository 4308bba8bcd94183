"""Measures the samplers: exactness, gradient, cost, memory, the quality of their pictures, inversion, and updates."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from sgool.backends import Backend, ImageBackend
from sgool.generate import AUTO
from sgool.guidance.clip import Clip
from sgool.lab.bench_candidates import candidates_ratio, lockstep_ratio
from sgool.lab.bench_cost import KINDS, update_cost
from sgool.lab.bench_descent import descent
from sgool.lab.peak_memory import PeakMemory
from sgool.samplers import SAMPLERS, Network, Sampler, Schedule, Trajectory, bdia, make_schedule, steps_range
from sgool.samplers.shear import Shear

LEADING = {name: sampler for name, sampler in SAMPLERS.items() if sampler.spacing == "leading"}
"""The samplers for models of many steps."""

ALL = {**LEADING, "bdia-undamped": bdia.sampler(gamma=1)}
SHEARS = [name for name, sampler in ALL.items() if sampler.exact_inverse]
SCALE = 4.0
"""Guidance scale of measurements that do not vary it: the embedded model's default."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is measured. backend: the model in float32. half: the same in half precision, for a second set of rows.

    judge: rates the pictures. guide: the critic for the rows of `descent`. captions: the judge must tell them apart;
    pictures are made for the first `count` of them.
    """

    backend: ImageBackend
    judge: Clip
    guide: Clip
    captions: Sequence[str]
    half: Backend | None = None
    count: int = 60


def bench(subject: Subject, *, quick: bool = False, progress: bool = True) -> dict[str, Any]:
    """All figures of the samplers as plain JSON values; see ``render_tables``. quick: few settings, few pictures."""
    backend, captions = subject.backend, subject.captions
    steps = (5, 10) if quick else (5, 10, 20, 50)
    made = captions[: min(subject.count, 8) if quick else subject.count]
    grid = [(10, SCALE)] if quick else [(n, scale) for n in (10, 20, 50) for scale in (1.0, SCALE, 7.5)]
    ways = [(SCALE, 1.0)] if quick else [(scale, strength) for scale in (1.0, 3.5, 7.0) for strength in (0.5, 0.8, 1.0)]
    backends = [backend] if subject.half is None else [backend, subject.half]
    way_steps = 10 if quick else 20
    pictures = latents_of_pictures(backend, captions[:4], way_steps)

    work: list[tuple[str, Callable[[], Row]]] = []
    for one in backends:
        work += [("samplers", partial(exactness, one, captions[0], name, n)) for name in LEADING for n in steps]
    for name in ALL:
        work += [("sampler_quality", partial(quality, subject, made, name, *point)) for point in grid]
    for name in SHEARS:
        carry = partial(inversion, backend, pictures, captions[:4], (name, way_steps))
        work += [("inverted_latents", partial(carry, *way)) for way in ways]
    for scale in (1.0, SCALE, 7.5):
        work.append(("descent", partial(descent, backend, subject.guide, captions[: 4 if quick else 40], scale)))
    for kind in KINDS:
        fewest, _ = steps_range(SAMPLERS[kind[0]].spacing)
        some = [n for n in ((4,) if quick else (1, 4, 8, 20)) if n >= fewest]
        work += [("updates", partial(update_cost, backend, captions[0], kind, n)) for n in some]
    figures: dict[str, Any] = {"device": str(backend.device), "captions": len(made)}
    for key, task in tqdm(work, desc="bench", disable=not progress):
        figures.setdefault(key, []).append(task())
    figures["seconds_ratio_bdia_to_edict"] = seconds_ratio(backend, captions[0], repeats=3 if quick else 9)
    figures["seconds_ratio_candidates"] = candidates_ratio(backend, captions[0], repeats=1 if quick else 9)
    size = {"repeats": 1, "count": 2, "iterations": 1} if quick else {"repeats": 5}
    figures["seconds_ratio_lockstep"] = lockstep_ratio(backend, captions[0], **size)
    rows = [row for row in figures["inverted_latents"] if row["sampler"] == AUTO["image"]]
    figures["image_start_error"] = max(row["image_error"] for row in rows)
    return figures


def trajectory_of(
    backend: Backend, sampler: Sampler, steps: int, prompt: str | Sequence[str], scale: float, strength: float = 1.0
) -> Trajectory:
    schedule = make_schedule(backend.alphas_cumprod, steps)
    network = backend.network(prompt, "", scale)
    return Trajectory(sampler, schedule, network, sampler.start_node(schedule, strength))


def exactness(backend: Backend, prompt: str, name: str, steps: int) -> Row:
    """Cost and exactness of one forward and one backward pass, for the loss |image latent|^2 / 2.

    reconstruction_error: largest difference between the noise and the noise that the adjoint recovers.
    gradient_error: relative L2 distance to full autograd through the same operations. peak_memory_mb: peak beyond the
    model's weights, with the network's graph. autograd_memory_mb: the same for full autograd.
    """
    trajectory = trajectory_of(backend, ALL[name], steps, prompt, SCALE)
    noise = backend.noise(0)
    backend.network(prompt, "", SCALE)(noise, 1)  # Libraries allocate workspaces at their first use.
    with PeakMemory(backend.device) as own:
        final = trajectory.run(trajectory.initial(noise))
        (recovered,), (gradient,) = trajectory.adjoint(final, trajectory.image(final))
    with PeakMemory(backend.device) as full:
        wanted = autograd_gradient(trajectory, noise)
    return {
        "sampler": name,
        "steps": steps,
        "dtype": str(trajectory.network.dtype).removeprefix("torch."),
        "reconstruction_error": (recovered - noise).abs().max().item() if ALL[name].exact_inverse else None,
        "gradient_error": ((gradient - wanted).norm() / wanted.norm()).item(),
        "evals_forward": trajectory.network.evals_forward,
        "evals_backward": trajectory.network.evals_backward,
        "peak_memory_mb": own.bytes / 2**20,
        "autograd_memory_mb": full.bytes / 2**20,
    }


def autograd_gradient(trajectory: Trajectory, noise: Tensor) -> Tensor:
    """The gradient of |image latent|^2 / 2 by plain autograd through every operation, with all graphs in memory."""
    sampler, schedule, network = trajectory.sampler, trajectory.schedule, trajectory.network
    leaf = noise.detach().requires_grad_()
    state = [weight * leaf for weight in sampler.weights(schedule, 0)]
    for op in sampler.operations(schedule, 0):
        state[op.k] = differentiable(op, state, network, schedule)
    image = state[sampler.image_index(schedule, 0)]
    return torch.autograd.grad(0.5 * image.square().sum(), leaf)[0]


def differentiable(op: Shear, state: Sequence[Tensor], network: Network, schedule: Schedule) -> Tensor:
    """The new s[k], with gradients and in single float64 words."""
    x = state[op.j]
    total = op.alpha * state[op.k] + op.beta * x
    if op.node is None:
        return total
    t = schedule.timesteps[op.node]
    eps = torch.stack([b.weight * b.function(x.to(network.dtype), t).double() for b in network.branches]).sum(0)
    if network.prediction == "v_prediction":
        eps = schedule.a[op.node] * eps + schedule.sigma[op.node] * x
    return total + op.c * eps


def seconds_ratio(backend: Backend, prompt: str, repeats: int, steps: int = 10) -> float:
    """Median time of a forward and a backward pass with damped BDIA, divided by EDICT's. The two take turns."""

    def seconds(name: str) -> float:
        trajectory = trajectory_of(backend, ALL[name], steps, prompt, SCALE)
        begun = time.perf_counter()
        final = trajectory.run(trajectory.initial(noise))
        trajectory.adjoint(final, trajectory.image(final))[1][0].sum().item()  # .item() waits for the device.
        return time.perf_counter() - begun

    noise = backend.noise(0)
    seconds("bdia")
    times = [(seconds("bdia"), seconds("edict")) for _ in range(repeats)]
    ours, theirs = (statistics.median(column) for column in zip(*times, strict=True))
    return ours / theirs


@torch.no_grad()
def quality(subject: Subject, made: Sequence[str], name: str, steps: int, scale: float) -> Row:
    """The judge's scores of one picture per caption in `made` (the i-th from seed i), without any optimization.

    score_mean, ci95: mean cosine between picture and caption, and its normal 95 % interval. accuracy: how often the
    judge finds the right caption among all captions.
    """
    backend, judge, captions = subject.backend, subject.judge, subject.captions
    texts = torch.stack([judge.encode_text(caption) for caption in captions])
    scores = []
    for first in range(0, len(made), 20):
        prompts = made[first : first + 20]
        trajectory = trajectory_of(backend, ALL[name], steps, prompts, scale)
        noise = torch.cat([backend.noise(first + i) for i in range(len(prompts))])
        latents = trajectory.image(trajectory.run(trajectory.initial(noise)))
        scores.append(judge.encode_image(backend.decode(latents).clamp(0, 1)) @ texts.T)
    table = torch.cat(scores).cpu().double()
    truth = torch.tensor([list(captions).index(caption) for caption in made])
    own = table.gather(1, truth[:, None])[:, 0]
    mean, half_width = own.mean().item(), 1.96 * own.std().item() / len(own) ** 0.5
    return {
        "sampler": name,
        "steps": steps,
        "guidance_scale": scale,
        "score_mean": mean,
        "ci95": [mean - half_width, mean + half_width],
        "accuracy": (table.argmax(1) == truth).double().mean().item(),
    }


@torch.no_grad()
def latents_of_pictures(backend: ImageBackend, captions: Sequence[str], steps: int) -> Tensor:
    """Latents [B, 4, h, w] of pictures made by DDIM, encoded like any other picture."""
    trajectory = trajectory_of(backend, ALL["ddim"], steps, captions, SCALE)
    noise = torch.cat([backend.noise(seed) for seed in range(len(captions))])
    images = backend.decode(trajectory.image(trajectory.run(trajectory.initial(noise)))).clamp(0, 1)
    return torch.cat([backend.encode(image[None]) for image in images])


def inversion(
    backend: Backend,
    pictures: Tensor,
    prompts: Sequence[str],
    way: tuple[str, int],
    scale: float,
    strength: float,
) -> Row:
    """Inverted latents of pictures: how Gaussian they are at the start node, and how exactly sampling reproduces them.

    way: a sampler's name and its steps.

    norm_ratio: root mean square. spectrum: see ``spectral_ratio``. image_error: largest difference of a latent after
    inversion and sampling. With a strength below 1 the start node is only partly noise, so the latents are not white.
    """
    name, steps = way
    trajectory = trajectory_of(backend, ALL[name], steps, prompts, scale, strength)
    state = trajectory.invert(pictures)
    latent = state[trajectory.sampler.weights(trajectory.schedule, trajectory.start_node).index(1.0)]
    back = trajectory.image(trajectory.run(state))
    return {
        "sampler": name,
        "guidance_scale": scale,
        "strength": strength,
        "mean": latent.mean().item(),
        "variance": latent.var().item(),
        "norm_ratio": latent.square().mean().sqrt().item(),
        "spectrum": spectral_ratio(latent),
        "image_error": (back - pictures).abs().max().item(),
    }


def spectral_ratio(latents: Tensor) -> float:
    """Mean power at low spatial frequencies, divided by that at high ones; 1 for white noise.

    latents: [B, C, h, w]. Low frequencies are below a quarter of a cycle per pixel. The mean (frequency zero) is left
    out.
    """
    power = torch.fft.fft2(latents).abs().square().mean((0, 1))
    rows, columns = (torch.fft.fftfreq(n, device=latents.device, dtype=latents.dtype) for n in latents.shape[-2:])
    radius = (rows[:, None] ** 2 + columns**2).sqrt()
    return (power[(radius > 0) & (radius < 0.25)].mean() / power[radius >= 0.25].mean()).item()


def render_tables(figures: Mapping[str, Any]) -> str:
    """The figures as markdown tables, one for each list of rows."""
    ratio, error = figures["seconds_ratio_bdia_to_edict"], figures["image_start_error"]
    together = figures["seconds_ratio_candidates"]
    lines = [
        f"{figures['captions']} captions on {figures['device']}. One update with damped BDIA takes {ratio:.2f} of "
        f"EDICT's time. An image inverted with {AUTO['image']} is reproduced to {error:.0e}. "
        f"Eight candidates take {together:.2f} of the time of eight single images. Four images improved together take "
        f"{figures['seconds_ratio_lockstep']:.2f} of the time of one after another."
    ]
    for key in ("samplers", "sampler_quality", "inverted_latents", "descent", "updates"):
        lines += ["", f"**{key.replace('_', ' ')}**", "", *table(figures[key])]
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> list[str]:
    """The lines of a markdown table of rows with the same keys."""
    columns = list(rows[0])
    head = [_line(columns), _line(["---"] * len(columns))]
    return head + [_line([_cell(row[column]) for column in columns]) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("_", " ")


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_cell, value))}]"
    return "" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
