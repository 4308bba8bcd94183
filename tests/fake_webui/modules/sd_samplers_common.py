from modules import shared  # noqa: F401
from modules.shared import state


class InterruptedException(BaseException):
    pass


def store_latent(decoded):
    state.current_latent = decoded


def setup_img2img_steps(p, steps=None):
    return p.steps, int(min(p.denoising_strength, 0.999) * p.steps)


class TorchHijack:
    """k-diffusion's torch, with the random numbers of the images at hand."""

    def __init__(self, p):
        self.rng = p.rng

    def randn_like(self, x):
        return self.rng.next()
