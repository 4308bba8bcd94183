"""Options, state and the loaded model."""

from types import SimpleNamespace

sd_model = None
cmd_opts = SimpleNamespace(lowvram=False, no_prompt_history=False)


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, onchange=None, section=None):
        self.default, self.label, self.component, self.section = default, label, component, section


class Options:
    def __init__(self):
        vars(self)["data"] = {
            "live_previews_enable": True,
            "show_progress_every_n_steps": 1,
            "skip_early_cond": 0.0,
            "s_min_uncond_all": False,
            "batch_cond_uncond": True,
            "sgm_noise_multiplier": False,
            "img2img_background_color": "#ffffff",
            "eta_noise_seed_delta": 0,
            "samples_format": "png",
            "samples_save": True,
            "save_incomplete_images": False,
            "enable_pnginfo": True,
            "save_txt": False,
            "return_grid": False,
            "grid_save": False,
            "grid_only_if_multiple": True,
            "grid_format": "png",
            "grid_extended_filename": False,
            "return_mask": False,
            "return_mask_composite": False,
            "img2img_fix_steps": False,
            "save_init_img": True,
            "overlay_inpaint": False,  # the extension has to see to it
        }
        vars(self)["data_labels"] = {}

    def __setattr__(self, key, value):
        if key in self.data:
            self.data[key] = value
        else:
            super().__setattr__(key, value)

    def __getattr__(self, item):
        if item in self.data:
            return self.data[item]
        if item in self.data_labels:
            return self.data_labels[item].default
        raise AttributeError(item)

    def add_option(self, key, info):
        self.data_labels[key] = info


class State:
    skipped = False
    interrupted = False
    stopping_generation = False
    job = ""
    job_no = 0
    job_count = 0
    sampling_step = 0
    sampling_steps = 0
    current_latent = None
    current_image = None
    current_image_sampling_step = 0
    textinfo = None

    def assign_current_image(self, image):
        self.current_image = image

    def nextjob(self):
        self.job_no += 1
        self.sampling_step = 0


class TotalTQDM:
    def update(self):
        pass


opts = Options()
state = State()
total_tqdm = TotalTQDM()
