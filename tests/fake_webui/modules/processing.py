"""One generation, with the hooks where the WebUI has them."""

import numpy as np
import torch
from modules import devices, extra_networks, images, prompt_parser, rng, scripts, sd_hijack, sd_samplers, shared
from modules.sd_hijack import model_hijack
from modules.shared import cmd_opts, opts, state
from PIL import Image, ImageFilter, ImageOps

params_txt = []
"""Every infotext that was written to that file."""


def decode_latent_batch(model, batch, target_device=None, check_for_nans=False):
    decoded = [model.first_stage_model.decode(z[None] / model.scale_factor)[0] for z in batch]
    if check_for_nans and any(torch.isnan(image).any() for image in decoded):
        raise RuntimeError("A tensor with NaNs was produced in VAE.")
    return decoded


class StableDiffusionProcessing:
    mask = nmask = None
    refiner_checkpoint_info = None
    do_not_save_samples = do_not_save_grid = False

    paste_to = overlay_images = mask_for_overlay = None
    init_images = image_mask = None
    resize_mode = 0

    def __init__(
        self,
        sd_model=None,
        outpath_samples="outputs",
        outpath_grids="outputs",
        prompt="",
        negative_prompt="",
        seed=1,
        subseed=-1,
        subseed_strength=0,
        seed_resize_from_h=-1,
        seed_resize_from_w=-1,
        sampler_name="DDIM",
        scheduler="Automatic",
        batch_size=1,
        n_iter=1,
        steps=4,
        cfg_scale=4.0,
        width=64,
        height=64,
        restore_faces=None,
        tiling=None,
        do_not_save_samples=False,
        do_not_save_grid=False,
        extra_generation_params=None,
        eta=None,
        do_not_reload_embeddings=False,
        disable_extra_networks=False,
    ):
        given = {name: value for name, value in locals().items() if name not in ("self", "sd_model")}
        vars(self).update(given)
        self.extra_generation_params = extra_generation_params or {}
        self.comments = {}
        self.iteration = 0
        self.scripts = None
        self.script_args = ()
        self.sampler = None
        self.extra_network_data = None

    def init(self, all_prompts, all_seeds, all_subseeds):
        pass

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
        self.sampler = sd_samplers.create_sampler(self.sampler_name, self.sd_model)
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

    def __init__(
        self,
        *,
        denoising_strength=0.5,
        init_images=None,
        mask=None,
        mask_blur=0,
        inpainting_fill=0,
        inpaint_full_res=True,
        inpaint_full_res_padding=0,
        **options,
    ):
        super().__init__(**options)
        self.denoising_strength, self.init_images, self.image_mask = denoising_strength, init_images, mask
        self.mask_blur, self.inpainting_fill = mask_blur, inpainting_fill
        self.inpaint_full_res, self.inpaint_full_res_padding = inpaint_full_res, inpaint_full_res_padding

    def init(self, all_prompts, all_seeds, all_subseeds):
        if not self.init_images:
            return
        (image,) = self.init_images
        if self.image_mask is None:
            pixels = np.array(images.resize_image(self.resize_mode, image, self.width, self.height))
            latent = shared.sd_model.backend[0].encode(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255).float()
            self.init_latent = latent.repeat(self.batch_size, 1, 1, 1)
            return
        if opts.save_init_img:
            images.save_image(image, "inits", None)
        mask = self.image_mask.filter(ImageFilter.BoxBlur(self.mask_blur and int(2.5 * self.mask_blur + 0.5)))
        self.mask_for_overlay = mask
        left, top, right, bottom = mask.getbbox()
        pad = self.inpaint_full_res_padding
        left, top = max(left - pad, 0), max(top - pad, 0)
        right, bottom = min(right + pad, mask.width), min(bottom + pad, mask.height)
        self.paste_to = (left, top, right - left, bottom - top)
        masked = Image.new("RGBa", image.size)
        masked.paste(image.convert("RGBA").convert("RGBa"), mask=ImageOps.invert(mask))
        self.overlay_images = [masked.convert("RGBA")]
        crop = image.crop((left, top, right, bottom)).resize((self.width, self.height))
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None] / 255
        self.init_latent = shared.sd_model.backend[0].encode(pixels).float()
        small = mask.crop((left, top, right, bottom)).resize((self.width // 8, self.height // 8))
        self.nmask = torch.from_numpy(np.around(np.array(small) / 255)).float()[None].repeat(4, 1, 1)
        self.mask = 1 - self.nmask

    def sample(self, conditioning, unconditional_conditioning, seeds, subseeds, subseed_strength, prompts):
        self.sampler = sd_samplers.create_sampler("DDIM", self.sd_model)
        x = self.rng.next()
        if self.scripts is not None:
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
        self.all_subseeds, self.all_negative_prompts = p.all_subseeds, p.all_negative_prompts
        self.seed, self.subseed, self.info = p.all_seeds[0], p.all_subseeds[0], infotexts[0] if infotexts else ""
        self.comments = "".join(f"{comment}\n" for comment in p.comments)

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
    return Infotext({key: str(value) for key, value in found.items() if value is not None})


class Infotext(str):
    """A text, as the WebUI makes it, which tests read like a dict."""

    def __new__(cls, found):
        text = super().__new__(cls, ", ".join(f"{key}: {value}" for key, value in found.items()))
        text.found = found
        return text

    def __getitem__(self, key):
        return self.found[key]

    def __contains__(self, key):
        return key in self.found

    def get(self, key, default=None):
        return self.found.get(key, default)


def process_images(p):
    """A Processed with infotexts as dicts. p.latents: of every batch; p.saved: whether each image went to disk."""
    return process_images_inner(p)


def process_images_inner(p):
    sd_hijack.model_hijack.apply_circular(bool(p.tiling))
    model_hijack.clear_comments()
    count = p.batch_size * p.n_iter
    p.all_prompts, p.all_seeds = [p.prompt] * count, [p.seed + i for i in range(count)]
    p.all_negative_prompts, p.all_subseeds = [p.negative_prompt] * count, [p.subseed + i for i in range(count)]
    p.latents, p.saved = [], []
    pictures, texts = [], []
    if p.scripts is not None:
        p.scripts.process(p)
    if state.job_count in (0, -1):
        state.job_count = p.n_iter
    with torch.no_grad():
        p.init(p.all_prompts, p.all_seeds, p.all_subseeds)
        for n in range(p.n_iter):
            p.iteration = n
            state.skipped = False
            if state.interrupted or state.stopping_generation:
                break
            batch = slice(n * p.batch_size, (n + 1) * p.batch_size)
            p.prompts, p.seeds = p.all_prompts[batch], p.all_seeds[batch]
            p.negative_prompts, p.subseeds = p.all_negative_prompts[batch], p.all_subseeds[batch]
            p.rng = rng.ImageRNG((4, p.height // 8, p.width // 8), p.seeds)
            p.prompts, p.extra_network_data = extra_networks.parse_prompts(p.prompts)
            if not p.disable_extra_networks:
                extra_networks.activate(p, p.extra_network_data)
            p.setup_conds()
            model_hijack.comments.append("of this pass")
            if n == 0 and not cmd_opts.no_prompt_history:
                params_txt.append(p.prompts)
            with devices.autocast():
                samples = p.sample(p.c, p.uc, p.seeds, None, 0, p.prompts)
            if p.scripts is not None:
                ps = scripts.PostSampleArgs(samples)
                p.scripts.post_sample(p, ps)
                samples = ps.samples
            p.latents.append(samples)
            if not getattr(samples, "already_decoded", False):
                samples = decode_latent_batch(p.sd_model, samples, target_device=devices.cpu, check_for_nans=True)
            state.nextjob()
            if p.scripts is not None:
                shown = torch.clamp((torch.stack(list(samples)).float() + 1) / 2, 0, 1)
                as_decoded = shown.clone()
                p.scripts.postprocess_batch(p, shown, batch_number=n)
                # What no script has changed is compared with the decoder's own numbers in the tests.
                samples = [
                    mine if torch.equal(new, old) else 2 * new - 1
                    for mine, new, old in zip(samples, shown, as_decoded, strict=True)
                ]
            p.prompts = p.all_prompts[batch]
            p.saved += [p.save_samples()] * len(samples)
            for i, sample in enumerate(samples):
                p.batch_index = i
                pictures.append(finish(p, sample))
                texts.append(create_infotext(p, p.prompts, p.seeds, None, None, index=i))
    processed = Processed(p, pictures, texts)
    if p.scripts is not None:
        p.scripts.postprocess(p, processed)
    return processed


def apply_overlay(image, paste_loc, overlay):
    left, top, width, height = paste_loc
    whole = Image.new("RGBA", overlay.size)
    whole.paste(image.resize((width, height)), (left, top))
    whole.alpha_composite(overlay)
    return whole.convert("RGB"), image


def finish(p, sample):
    """The image as the decoder gave it, and a picture where a script has changed it or it is pasted into another."""
    pixels = torch.clamp((sample.float() + 1) / 2, 0, 1)
    decoded = image = Image.fromarray((255.0 * np.moveaxis(pixels.numpy(), 0, 2)).astype(np.uint8))
    if p.scripts is not None:
        pp = scripts.PostprocessImageArgs(image)
        p.scripts.postprocess_image(p, pp)
        image = pp.image
    if p.paste_to is not None and shared.opts.overlay_inpaint:
        image, _ = apply_overlay(image, p.paste_to, p.overlay_images[0])
    if p.scripts is not None:
        pp = scripts.PostprocessImageArgs(image)
        p.scripts.postprocess_image_after_composite(p, pp)
        image = pp.image
    return sample if image is decoded else image
