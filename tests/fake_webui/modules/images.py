saved = []


def save_image(image, path, basename, seed=None, prompt=None, extension="png", info=None, p=None, suffix=""):
    saved.append((suffix, image, info))
