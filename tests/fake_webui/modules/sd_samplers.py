"""Two samplers: DDIM, which walks on timesteps, and Euler a, on noise levels and with noise between its steps."""

import itertools

import k_diffusion.sampling
import torch
from modules import sd_samplers_common
from modules.sd_samplers_cfg_denoiser import CFGDenoiser


class DDIM:
    def __init__(self, sd_model):
        self.model = sd_model
        self.model_wrap_cfg = CFGDenoiser(self)

    def initialize(self, p):
        self.model_wrap_cfg.mask = getattr(p, "mask", None)
        self.model_wrap_cfg.nmask = getattr(p, "nmask", None)
        self.model_wrap_cfg.step = 0
        k_diffusion.sampling.torch = sd_samplers_common.TorchHijack(p)
        p.extra_generation_params["Eta DDIM"] = 0.0
        return {}

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        self.sampler_extra_args = {"image_cond": image_conditioning}
        return self._walk(p, x, p.steps, conditioning, unconditional_conditioning)

    def sample_img2img(
        self, p, x, noise, conditioning, unconditional_conditioning, steps=None, image_conditioning=None
    ):
        steps, begin = sd_samplers_common.setup_img2img_steps(p, steps)
        abar = self.model.alphas_cumprod[begin * (1000 // steps) + 1]
        noised = x * abar.sqrt() + noise * (1 - abar).sqrt()
        return self._walk(p, noised, begin + 1, conditioning, unconditional_conditioning)

    def _walk(self, p, x, count, c, uc):
        self.initialize(p)
        self.model_wrap_cfg.total_steps = count
        sd_samplers_common.state.sampling_steps, sd_samplers_common.state.sampling_step = count, 0
        conditions = {"uncond": uc, "cond": c, "cond_scale": p.cfg_scale, "s_min_uncond": 0, "image_cond": None}
        try:
            return self.func(self.model_wrap_cfg, x, extra_args=conditions, **self.levels(p, count))
        except sd_samplers_common.InterruptedException:
            return self.last_latent

    def levels(self, p, count):
        """Ascending. The first one is where the last step ends."""
        return {"timesteps": torch.tensor([0, *(i * (1000 // p.steps) + 1 for i in range(count))]), "eta": 0.0}

    def func(self, model, x, timesteps, extra_args=None, eta=0.0):
        abars = self.model.alphas_cumprod
        self.last_latent = x
        for i in reversed(range(1, len(timesteps))):
            t, after = timesteps[i], abars[timesteps[i - 1]]
            eps = model(x, x.new_full((len(x),), t), **extra_args)
            x = (x - (1 - abars[t]).sqrt() * eps) / abars[t].sqrt() * after.sqrt() + (1 - after).sqrt() * eps
            self.last_latent = x
            sd_samplers_common.state.sampling_step = len(timesteps) - i
            sd_samplers_common.shared.total_tqdm.update()
        return x


class EulerAncestral(DDIM):
    def __init__(self, sd_model):
        super().__init__(sd_model)
        self.model_wrap = Levels(sd_model.alphas_cumprod)

    def sample(self, p, x, conditioning, unconditional_conditioning, steps=None, image_conditioning=None):
        return super().sample(p, x * self.levels(p, p.steps)["sigmas"][0], conditioning, unconditional_conditioning)

    def levels(self, p, count):
        """Between the timesteps, and some of them near the noise."""
        timesteps = torch.linspace(990.3, 10.6, count)
        return {"sigmas": torch.cat([self.model_wrap.t_to_sigma(timesteps), torch.zeros(1)]), "eta": p.eta or 1.0}

    def func(self, model, x, sigmas, extra_args=None, eta=1.0):
        for sigma, after in itertools.pairwise(sigmas):
            t = self.model_wrap.sigma_to_t(sigma[None]).expand(len(x))
            d = model(x / (1 + sigma**2).sqrt(), t, **extra_args)
            up = min(after, eta * (after**2 * (sigma**2 - after**2) / sigma**2).sqrt())
            x = x + d * ((after**2 - up**2).sqrt() - sigma)
            if after > 0:
                x = x + up * k_diffusion.sampling.torch.randn_like(x)
            self.last_latent = x
        return x


class Levels:
    """The noise level of every timestep and, by its logarithm, of what lies between two."""

    def __init__(self, alphas_cumprod):
        self.log_sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt().log()

    def t_to_sigma(self, t):
        low = t.floor().long()
        return torch.lerp(self.log_sigmas[low], self.log_sigmas[low + 1], t.frac()).exp()

    def sigma_to_t(self, sigma):
        low = ((self.log_sigmas <= sigma.log()).sum() - 1).clamp(0, len(self.log_sigmas) - 2)
        step = self.log_sigmas[low + 1] - self.log_sigmas[low]
        return low + ((sigma.log() - self.log_sigmas[low]) / step).clamp(0, 1)


def create_sampler(name, model):
    return {"DDIM": DDIM, "Euler a": EulerAncestral}[name](model)
