"""The script that the WebUI loads. All its code is in the package `sgool.webui`."""

from sgool.webui import register
from sgool.webui.script import SgoolScript

__all__ = ["SgoolScript"]

register()
