"""Installs what the WebUI lacks; with AUTOMATIC1111's own requirements that is nothing.

Everything that is installed is a constraint, so that no version of it can move.
"""

import importlib.metadata
import importlib.util
import os
import tempfile

import launch

NEEDED = {"open_clip": "open-clip-torch", "cv2": "opencv-python-headless", "safetensors": "safetensors"}

missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
if missing:
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    with tempfile.TemporaryDirectory() as folder:
        constraints = os.path.join(folder, "constraints.txt")
        with open(constraints, "w", encoding="utf-8") as file:
            file.writelines(f"{name}=={version}\n" for name, version in installed.items())
        names = " ".join(missing)
        launch.run_pip(f'install {names} -c "{constraints}"', f"what sd-webui-sgool needs: {names}")
