registered = {}


def on_ui_settings(callback, *, name=None):
    registered["ui_settings"] = callback


def on_app_started(callback, *, name=None):
    registered["app_started"] = callback


def on_before_ui(callback, *, name=None):
    registered["before_ui"] = callback
