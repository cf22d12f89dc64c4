"""Reads a page of diffem, and checks what each one must hold."""

import base64
import io
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """What a page holds.

    Attributes:
        elements: Each element's name and attributes.
        text: All texts outside of style and script.
        headings: The texts of the h2 elements.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text = ""
        self.headings: list[str] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.text += data
        if "h2" in self.open:
            self.headings.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        """Returns the attributes of all elements of a name."""
        return [attributes for name, attributes in self.elements if name == tag]

    def images(self) -> list[Image.Image]:
        """Returns the images, each decoded."""
        found = []
        for attributes in self.all("img"):
            kind, _, content = attributes["src"].partition(",")
            assert kind == "data:image/png;base64" and attributes["alt"]
            image = Image.open(io.BytesIO(base64.b64decode(content, validate=True)))
            image.load()
            found.append(image)
        return found


def check_page(path: Path) -> Page:
    """Returns a page that is one file, asks for nothing, and can be read by a screen reader."""
    page = Page(path)
    page.images()
    ids = Counter(a["id"] for _, a in page.elements if "id" in a)
    assert max(ids.values()) == 1, ids
    for name, attributes in page.elements:
        for key in ("href", "src", "action", "data", "srcset"):
            url = attributes.get(key, "")
            assert not re.match(r"([a-z]+:)?//|https?:", url), (name, url)
        for key in ("for", "aria-labelledby"):
            assert key not in attributes or attributes[key] in ids, attributes
        if name == "a" and attributes["href"].startswith("#"):
            assert attributes["href"][1:] in ids, attributes
        if name == "svg":
            assert "aria-label" in attributes or attributes.get("aria-hidden") == "true"
    assert not {"link", "iframe", "object", "base"} & {name for name, _ in page.elements}
    assert not any("src" in a for a in page.all("script"))
    assert "@import" not in page.source and "url(" not in page.source
    policy = next(a["content"] for a in page.all("meta") if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")
    assert len(page.all("h1")) == 1 and page.all("html") == [{"lang": "en"}]
    labelled = {a.get("for") for a in page.all("label")}
    assert all(a.get("id") in labelled or a["type"] == "radio" for a in page.all("input"))
    return page
