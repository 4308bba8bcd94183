saved = []


def save_image(
    image,
    path,
    basename,
    seed=None,
    prompt=None,
    extension="png",
    info=None,
    p=None,
    forced_filename=None,
    suffix="",
    save_to_dirs=None,
):
    saved.append((forced_filename or suffix, image, info))


def flatten(img, bgcolor):
    return img.convert("RGB")


def resize_image(resize_mode, im, width, height, upscaler_name=None):
    return im.resize((width, height))
