"""The denoiser that guides."""

import torch
from modules import sd_samplers_common, shared
from modules.shared import opts, state  # noqa: F401  the WebUI's has both, too


class CFGDenoiser(torch.nn.Module):
    def __init__(self, sampler):
        super().__init__()
        self.sampler = sampler
        self.step = 0
        self.steps = self.total_steps = None
        self.mask = self.nmask = self.init_latent = None

    def forward(self, x, sigma, uncond, cond, cond_scale, s_min_uncond, image_cond):
        if state.interrupted or state.skipped:
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
