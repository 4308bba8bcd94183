"""The AUTOMATIC1111 WebUI extension: all that imports the WebUI's `modules`."""

from __future__ import annotations


def register() -> None:
    """Register the callbacks of settings, API and XYZ plot; the WebUI forgets them at every reload of its interface."""
    from modules import script_callbacks

    from sgool.webui import api, options, xyz

    script_callbacks.on_ui_settings(options.add)
    script_callbacks.on_app_started(api.add_routes)
    script_callbacks.on_before_ui(xyz.add_axes)
