"""One sampler, DDIM, over a denoiser that guides."""

import k_diffusion.sampling
import torch
from modules import sd_samplers_common, shared


class CFGDenoiser(torch.nn.Module):
    def __init__(self, sampler):
        super().__init__()
        self.sampler = sampler
        self.step = 0
        self.steps = self.total_steps = None
        self.mask = self.nmask = self.init_latent = None

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        if shared.state.interrupted or shared.state.skipped:
            raise sd_samplers_common.InterruptedException
        assert len(x) == len(cond.batch) == len(uncond), "one conditioning for each image of the batch"
        alone = shared.opts.s_min_uncond_all and s_min_uncond > sigma[0]
        # One row of the batch for each prompt of each image, and one for its negative prompt.
        rows = [(i, self._at(each.schedules), each.weight) for i, prompts in enumerate(cond.batch) for each in prompts]
        if not alone:
            rows += [(i, self._at(schedule), None) for i, schedule in enumerate(uncond)]
        images = [i for i, _, _ in rows]
        conditions = torch.stack([condition for _, condition, _ in rows])
        eps = shared.sd_model.model.diffusion_model(x[images], sigma[images], conditions).sample
        if alone:
            result = eps
        else:
            negative = eps[-len(x) :]
            guided = [negative[i] for i in range(len(x))]
            for (i, _, weight), own in zip(rows[: -len(x)], eps, strict=False):
                guided[i] = guided[i] + cond_scale * weight * (own - negative[i])
            result = torch.stack(guided)
        sd_samplers_common.store_latent(result)
        self.step += 1
        return result

    def _at(self, schedule):
        return next((s.cond for s in schedule if self.step <= s.end_at_step), schedule[0].cond)


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
        shared.state.sampling_steps, shared.state.sampling_step = count, 0
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
            shared.state.sampling_step += 1
        return x


def create_sampler(name, model):
    return DDIM(model)
