"""One generation, with the hooks where the WebUI has them."""

import torch
from modules import devices, prompt_parser, rng, scripts, sd_samplers, shared


def decode_latent_batch(model, batch, target_device=None, check_for_nans=False):
    decoded = [model.first_stage_model.decode(z[None] / model.scale_factor)[0] for z in batch]
    if check_for_nans and any(torch.isnan(image).any() for image in decoded):
        raise RuntimeError("A tensor with NaNs was produced in VAE.")
    return decoded


class StableDiffusionProcessing:
    mask = nmask = None
    refiner_checkpoint_info = None
    do_not_save_samples = False

    def __init__(self, prompt="", negative_prompt="", seed=1, steps=4, cfg_scale=4.0, batch_size=1, n_iter=1):
        self.prompt, self.negative_prompt, self.seed = prompt, negative_prompt, seed
        self.steps, self.cfg_scale = steps, cfg_scale
        self.batch_size, self.n_iter = batch_size, n_iter
        self.extra_generation_params = {}
        self.comments = {}
        self.outpath_samples = "outputs"
        self.iteration = 0
        self.scripts = None
        self.script_args = ()
        self.sampler = None

    @property
    def sd_model(self):
        return shared.sd_model

    def comment(self, text):
        self.comments[text] = 1

    def save_samples(self):
        stopped = shared.state.interrupted or shared.state.skipped
        return (
            shared.opts.samples_save
            and not self.do_not_save_samples
            and (shared.opts.save_incomplete_images or not stopped)
        )

    def txt2img_image_conditioning(self, x, width=None, height=None):
        return x.new_zeros(len(x), 5, 1, 1)

    def setup_conds(self):
        self.c = prompt_parser.MulticondLearnedConditioning(
            (len(self.prompts),), [prompts(x, self.steps) for x in self.prompts]
        )
        self.uc = [schedule(self.negative_prompt, self.steps) for _ in self.prompts]
        self.firstpass_steps = self.steps


def schedule(text, steps):
    """`[from:to:when]` as two entries, anything else as one."""
    texts = [(steps, text)]
    if text.startswith("["):
        first, then, when = text.strip("[]").split(":")
        texts = [(int(float(when) * steps), first), (steps, then)]
    return [prompt_parser.ScheduledPromptConditioning(end, shared.sd_model.encode(each)) for end, each in texts]


def prompts(text, steps):
    return [
        prompt_parser.ComposableScheduledPromptConditioning(schedule(x.strip(), steps)) for x in text.split(" AND ")
    ]


class StableDiffusionProcessingTxt2Img(StableDiffusionProcessing):
    enable_hr = False
    is_hr_pass = False

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        self.sampler = sd_samplers.create_sampler("DDIM", self.sd_model)
        x = self.rng.next()
        self.scripts.process_before_every_sampling(p=self, x=x, noise=x, c=conditioning, uc=unconditional_conditioning)
        seen = self.txt2img_image_conditioning(x)
        samples = self.sampler.sample(self, x, conditioning, unconditional_conditioning, image_conditioning=seen)
        if not self.enable_hr:
            return samples
        return self.sample_hr_pass(samples, None, seeds, subseeds, subseed_strength, prompts)

    def sample_hr_pass(self, samples, decoded_samples, seeds, subseeds, subseed_strength, prompts):
        if shared.state.interrupted:
            return samples
        self.is_hr_pass = True
        self.first_pass = samples
        samples = torch.nn.functional.interpolate(samples, scale_factor=2)
        self.sampler = sd_samplers.create_sampler("DDIM", self.sd_model)
        noise = torch.randn_like(samples)
        self.scripts.process_before_every_sampling(p=self, x=samples, noise=noise, c=self.c, uc=self.uc)
        self.is_hr_pass = False
        decoded = DecodedSamples(decode_latent_batch(self.sd_model, samples))
        return decoded


class DecodedSamples(list):
    already_decoded = True


class StableDiffusionProcessingImg2Img(StableDiffusionProcessing):
    denoising_strength = 0.5
    init_latent = None
    image_conditioning = None

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        self.sampler = sd_samplers.create_sampler("DDIM", self.sd_model)
        x = self.rng.next()
        self.scripts.process_before_every_sampling(
            p=self, x=self.init_latent, noise=x, c=conditioning, uc=unconditional_conditioning
        )
        samples = self.sampler.sample_img2img(self, self.init_latent, x, conditioning, unconditional_conditioning)
        if self.mask is not None:
            samples = samples * self.nmask + self.init_latent * self.mask
        return samples


class Processed:
    def __init__(self, p, images_list, infotexts):
        self.images, self.infotexts = images_list, infotexts
        self.index_of_first_image = 0
        self.all_seeds, self.all_prompts = p.all_seeds, p.all_prompts

    def infotext(self, p, index):
        place = index % p.batch_size, index // p.batch_size
        return create_infotext(
            p, self.all_prompts, self.all_seeds, None, None, iteration=place[1], position_in_batch=place[0]
        )


def create_infotext(
    p,
    all_prompts,
    all_seeds,
    all_subseeds,
    comments=None,
    iteration=0,
    position_in_batch=0,
    use_main_prompt=False,
    index=None,
    all_negative_prompts=None,
):
    if index is None:
        index = position_in_batch + iteration * p.batch_size
    found = {"Steps": p.steps, "Seed": all_seeds[index]}
    for key, value in p.extra_generation_params.items():
        value = value[index] if isinstance(value, list) else value
        found[key] = value(**locals()) if callable(value) else value
    return {key: str(value) for key, value in found.items() if value is not None}


def process_images(p):
    """A Processed with infotexts as dicts. p.latents: of every batch; p.saved: whether each image went to disk."""
    count = p.batch_size * p.n_iter
    p.all_prompts, p.all_seeds = [p.prompt] * count, [p.seed + i for i in range(count)]
    p.latents, p.saved = [], []
    pictures, texts = [], []
    p.scripts.process(p)
    shared.state.job_count = p.n_iter
    with torch.no_grad():
        for n in range(p.n_iter):
            p.iteration = n
            shared.state.skipped = False
            if shared.state.interrupted or shared.state.stopping_generation:
                break
            batch = slice(n * p.batch_size, (n + 1) * p.batch_size)
            p.prompts, p.seeds = p.all_prompts[batch], p.all_seeds[batch]
            p.rng = rng.ImageRNG((4, 8, 8), p.seeds)
            p.setup_conds()
            with devices.autocast():
                samples = p.sample(p.c, p.uc, p.seeds, None, 0, p.prompts)
            ps = scripts.PostSampleArgs(samples)
            p.scripts.post_sample(p, ps)
            samples = ps.samples
            p.latents.append(samples)
            if not getattr(samples, "already_decoded", False):
                samples = decode_latent_batch(p.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
            shared.state.nextjob()
            p.saved += [p.save_samples()] * len(samples)
            for i, sample in enumerate(samples):
                p.batch_index = i
                pictures.append(sample)
                texts.append(create_infotext(p, p.prompts, p.seeds, None, None, index=i))
    processed = Processed(p, pictures, texts)
    p.scripts.postprocess(p, processed)
    return processed
