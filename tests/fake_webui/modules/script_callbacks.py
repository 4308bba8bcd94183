registered = []


def on_ui_settings(callback, *, name=None):
    registered.append(("ui_settings", callback))


def on_image_saved(callback, *, name=None):
    registered.append(("image_saved", callback))


def on_app_started(callback, *, name=None):
    registered.append(("app_started", callback))
