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
