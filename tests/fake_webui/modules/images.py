from PIL import Image, PngImagePlugin

saved = []

NOTHING_AND_SKIP_PREVIOUS_TEXT = object()


class FilenameGenerator:
    replacements = dict()  # noqa: RUF012

    def __init__(self, p, seed, prompt, image, basename=""):
        self.p, self.basename = p, basename


def save_image(
    image,
    path,
    basename,
    seed=None,
    prompt=None,
    extension="png",
    info=None,
    short_filename=False,
    grid=False,
    p=None,
    forced_filename=None,
    suffix="",
    save_to_dirs=None,
):
    saved.append((forced_filename or suffix, image, info))


def image_grid(imgs, batch_size=1, rows=None):
    width, height = imgs[0].size
    grid = Image.new("RGB", (width * len(imgs), height))
    for i, image in enumerate(imgs):
        grid.paste(image, (i * width, 0))
    return grid


def save_image_with_geninfo(image, geninfo, filename, extension=None, existing_pnginfo=None):
    info = PngImagePlugin.PngInfo()
    for name, text in {**(existing_pnginfo or {}), "parameters": geninfo}.items():
        info.add_text(name, text)
    image.save(filename, "PNG", pnginfo=info)


def read_info_from_image(image):
    more = dict(image.info)
    return more.pop("parameters", None), more


def flatten(img, bgcolor):
    return img.convert("RGB")


def resize_image(resize_mode, im, width, height, upscaler_name=None):
    return im.resize((width, height))
