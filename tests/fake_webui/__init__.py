"""As much of the WebUI's `modules` as sgool.webui touches, around the embedded model; no text of the WebUI's.

`tests/test_fake_webui.py` holds names, signatures and the order of hooks against a real one (pytest -m webui).
"""
