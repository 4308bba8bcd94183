"""The extension for AUTOMATIC1111's WebUI and its forks. Only this package imports the WebUI's `modules`."""

from __future__ import annotations


def register() -> None:
    """Register the callbacks of settings, API and X/Y/Z plot. The WebUI drops them at every reload of its interface."""
    from modules import script_callbacks

    from sgool.webui import api, options, script, xyz

    script_callbacks.on_ui_settings(options.add)
    script_callbacks.on_app_started(api.add_routes)
    script_callbacks.on_image_saved(script.remember_file)
    script_callbacks.on_ui_settings(script.add_name_pattern)
    # Not on_before_ui: with --nowebui that callback comes after the plot has read its list of axes.
    script_callbacks.on_ui_settings(xyz.add_axes)
