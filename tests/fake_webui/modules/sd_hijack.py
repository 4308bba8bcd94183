"""What the WebUI changes in a model."""


class StableDiffusionModelHijack:
    circular_enabled = False

    def __init__(self):
        self.comments = []
        self.extra_generation_params = {}

    def apply_circular(self, enable):
        self.circular_enabled = enable

    def clear_comments(self):
        self.comments = []
        self.extra_generation_params = {}


model_hijack = StableDiffusionModelHijack()
