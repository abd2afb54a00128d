"""Texts that do harm where they are shown as they are, and what HTML consists of."""

from __future__ import annotations

from html.parser import HTMLParser

HOSTILE = [
    "<script>alert(1)</script>",
    "</td></table></div><img src=x onerror=alert(1)>",
    "a & b &lt; &#60;",
    "\"'><b style='x'>",
    "\x1b[31mred\x1b]0;title\x07\x9b2J",
    "line\nline\r\ttab\x00\x7f\x85\u2028",
    "\u202eright to left\u2066\u200f",
    "lone \ud800 surrogate",
    "wide 漢字 e\u0301 👩\u200d🚀",
]

_ALLOWED = {"div", "span", "table", "thead", "tbody", "tr", "th", "td"}


class _Outline(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        assert tag in _ALLOWED, tag
        assert {name for name, _ in attributes} <= {"style"}, attributes
        assert not any("url(" in (value or "") for _, value in attributes)
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(data)


def outline(html: str) -> tuple[list[str], list[str]]:
    """Return the tags and the texts of HTML. Fails if it has more than plain elements with styles, all closed."""
    html.encode()
    parser = _Outline()
    parser.feed(html)
    parser.close()
    assert not parser.open
    return parser.tags, parser.texts


def is_plain(text: str) -> bool:
    """Return whether a text of several lines has only characters that can be printed anywhere in UTF-8."""
    return all(line.isprintable() for line in text.split("\n"))
