"""Google Drive's page that asks to confirm the download of a large file."""

from __future__ import annotations

from html.parser import HTMLParser
from urllib.parse import urlencode, urljoin, urlsplit


class _ConfirmForm(HTMLParser):
    """Finds the `download-form` and its hidden fields."""

    def __init__(self) -> None:
        super().__init__()
        self.action: str | None = None
        self.fields: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag == "form" and values.get("id") == "download-form":
            self.action = values.get("action")
        elif tag == "input" and self.action is not None and "name" in values:
            self.fields[values["name"]] = values.get("value", "")


def confirm_url(page: str, url: str) -> str | None:
    """The address the page's form leads to, or None if it is no such page."""
    form = _ConfirmForm()
    form.feed(page)
    if not form.action:
        return None
    target = urljoin(url, form.action)
    # A page may not send us to a local file or from https down to http.
    return f"{target}?{urlencode(form.fields)}" if urlsplit(target).scheme == urlsplit(url).scheme else None
