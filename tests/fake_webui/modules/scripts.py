"""The base class of scripts, and the order in which they are called."""

AlwaysVisible = object()
scripts_data = []


class PostSampleArgs:
    def __init__(self, samples):
        self.samples = samples


class PostprocessImageArgs:
    def __init__(self, image):
        self.image = image


class Script:
    is_img2img = False
    tabname = "txt2img"
    infotext_fields = None

    def title(self):
        raise NotImplementedError

    def show(self, is_img2img):
        return True

    def ui(self, is_img2img):
        pass

    def process(self, p, *args):
        pass

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass

    def post_sample(self, p, ps, *args):
        pass

    def postprocess_image(self, p, pp, *args):
        pass

    def postprocess_batch(self, p, *args, **kwargs):
        pass

    def postprocess_image_after_composite(self, p, pp, *args):
        pass

    def postprocess(self, p, processed, *args):
        pass


class ScriptRunner:
    """Calls every script with its arguments, which follow the selected script's number. `called` lists the hooks."""

    def __init__(self, scripts):
        self.scripts = scripts
        self.called = []

    def process(self, p):
        self._each("process", p)

    def process_before_every_sampling(self, p, **kwargs):
        self._each("process_before_every_sampling", p, **kwargs)

    def post_sample(self, p, ps):
        self._each("post_sample", p, ps)

    def postprocess_image(self, p, pp):
        self._each("postprocess_image", p, pp)

    def postprocess_batch(self, p, images, **kwargs):
        self._each("postprocess_batch", p, images=images, **kwargs)

    def postprocess_image_after_composite(self, p, pp):
        self._each("postprocess_image_after_composite", p, pp)

    def postprocess(self, p, processed):
        self._each("postprocess", p, processed)

    def _each(self, hook, p, *own, **kwargs):
        self.called.append(hook)
        for script in [each for each in self.scripts if hasattr(each, hook)]:
            getattr(script, hook)(p, *own, *p.script_args[1:], **kwargs)
