"""A page of a report as a test reads it."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """The tags, attributes and visible words of a page; fails on tags that are not closed in order."""

    VOID = frozenset({"meta", "link", "br"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)


def check_page(page: str) -> Page:
    """Return a page that loads nothing, runs nothing, and whose ids are unique and links lead somewhere."""
    parsed = Page(page)
    assert not parsed.tags & {"script", "iframe", "object", "embed", "img", "form", "base"}
    links = [value for _, name, value in parsed.attributes if name in {"src", "href", "xlink:href", "action", "data"}]
    assert links
    assert all(value.startswith("#") or value == "data:," for value in links), links
    assert "@import" not in page
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "default-src 'none'" in page
    assert "http" not in page.replace("http-equiv", "")
    ids = [value for _, name, value in parsed.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {value[1:] for value in links if value != "data:,"} <= set(ids)
    return parsed
