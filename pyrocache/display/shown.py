"""`Shown`: what IPython and notebooks ask an object for, made of its `Card`.

IPython takes both forms from `_repr_mimebundle_`, which makes the card once; other front ends call `_repr_html_`. The
renderers are imported when something is shown. The width and the encoding of the text are those of standard output.

Thread safety: thread-safe, if `_card` is.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pyrocache.late_imports import at_first_use

if TYPE_CHECKING:
    from pyrocache.display.card import Card

_WIDTH = 100  # columns, where standard output is no terminal: a notebook, a file


class Shown:
    """An object that is shown as a card."""

    __slots__ = ()

    def _card(self) -> Card:
        """Return what is shown."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        with at_first_use:
            from pyrocache.display import html
        return html.card(self._card())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        with at_first_use:
            from pyrocache.display import html
        card = self._card()
        return {"text/plain": as_text(card), "text/html": html.card(card)}


def as_text(card: Card) -> str:
    """Return a card as text for standard output: as wide as the terminal, in characters that it has."""
    with at_first_use:
        import shutil

        from pyrocache.display import text
    output = sys.stdout
    try:
        width = shutil.get_terminal_size().columns if output.isatty() else _WIDTH
        encoding = output.encoding or "utf-8"
    except (AttributeError, ValueError):  # none, a closed one, or an object that replaces it
        width, encoding = _WIDTH, "utf-8"
    return text.render(card, width, encoding)
