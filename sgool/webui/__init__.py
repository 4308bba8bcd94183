"""The AUTOMATIC1111 WebUI extension: all that imports the WebUI's `modules`."""

from __future__ import annotations


def register() -> None:
    """Register the callbacks of settings, API and XYZ plot; the WebUI forgets them at every reload of its interface."""
    from modules import script_callbacks

    from sgool.webui import api, options, script, xyz

    script_callbacks.on_ui_settings(options.add)
    script_callbacks.on_app_started(api.add_routes)
    script_callbacks.on_image_saved(script.remember_file)
    # Not "before the UI": with --nowebui that comes when the plot's list of axes is made already.
    script_callbacks.on_ui_settings(xyz.add_axes)
