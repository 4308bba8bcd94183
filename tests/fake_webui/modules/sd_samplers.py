"""One sampler, DDIM."""

import k_diffusion.sampling
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
        k_diffusion.sampling.torch = "a hijacked torch"
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
        sd_samplers_common.state.sampling_steps, sd_samplers_common.state.sampling_step = count, 0
        abars = self.model.alphas_cumprod
        for i in reversed(range(count)):
            t = i * (1000 // p.steps) + 1
            after = abars[max(0, t - 1000 // p.steps)]
            try:
                eps = self.model_wrap_cfg(
                    x,
                    x.new_full((len(x),), t),
                    uncond=uc,
                    cond=c,
                    cond_scale=p.cfg_scale,
                    s_min_uncond=0,
                    image_cond=None,
                )
            except sd_samplers_common.InterruptedException:
                return x
            x = (x - (1 - abars[t]).sqrt() * eps) / abars[t].sqrt() * after.sqrt() + (1 - after).sqrt() * eps
            sd_samplers_common.state.sampling_step = count - i
            sd_samplers_common.shared.total_tqdm.update()
        return x


def create_sampler(name, model):
    return DDIM(model)
