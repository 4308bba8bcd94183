"""Installs what the WebUI lacks; with AUTOMATIC1111's own requirements that is nothing.

It runs at every start of the WebUI, so that what only an installation needs is imported only for one.
"""

import importlib.util

NEEDED = {"open_clip": "open-clip-torch", "cv2": "opencv-python-headless", "safetensors": "safetensors"}


def install(packages):
    """Everything that is installed is a constraint, so that no version of it can move."""
    import importlib.metadata
    import os
    import tempfile

    import launch

    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    with tempfile.TemporaryDirectory() as folder:
        constraints = os.path.join(folder, "constraints.txt")
        with open(constraints, "w", encoding="utf-8") as file:
            for name, version in installed.items():
                if name and not name.startswith("~"):  # pip leaves such names on Windows when it is cut off
                    file.write(f"{name}=={version}\n")
        names = " ".join(packages)
        launch.run_pip(f'install {names} -c "{constraints}"', f"what sd-webui-sgool needs: {names}")


missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    install(missing)
