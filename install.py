"""Installs the packages that the WebUI lacks. With AUTOMATIC1111's own requirements there are none.

Forge Neo lacks open_clip.

The WebUI runs this file at every start, so modules that only an installation needs are imported in `install`.
"""

import importlib.util

NEEDED = {"open_clip": "open-clip-torch", "cv2": "opencv-python-headless", "safetensors": "safetensors"}


def install(packages):
    """Install the packages with pip. All installed versions become constraints, so none of them can change."""
    import importlib.metadata
    import os
    import tempfile

    import launch

    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    with tempfile.TemporaryDirectory() as folder:
        constraints = os.path.join(folder, "constraints.txt")
        with open(constraints, "w", encoding="utf-8") as file:
            for name, version in installed.items():
                if name and not name.startswith("~"):  # on Windows, an interrupted pip leaves such names
                    file.write(f"{name}=={version}\n")
        names = " ".join(packages)
        launch.run_pip(f'install {names} -c "{constraints}"', f"requirements of sd-webui-sgool: {names}")


missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    install(missing)
