"""What the WebUI loads. Everything is in the package `sgool.webui`."""

from sgool.webui import register
from sgool.webui.script import SgoolScript

__all__ = ["SgoolScript"]

register()
