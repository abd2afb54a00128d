"""`Nodes`: the list of nodes that ``nodes()`` returns, which notebooks show as a table.

Thread safety: as for any list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyrocache.cluster.routing import Member
from pyrocache.display.shown import Shown, as_text
from pyrocache.late_imports import at_first_use

if TYPE_CHECKING:
    from pyrocache.display.card import Card


class Nodes(Shown, list[Member]):
    """A list of nodes. It equals a plain list of the same nodes."""

    __slots__ = ()

    def _card(self) -> Card:
        with at_first_use:
            from pyrocache.client.views import of_nodes
        return of_nodes(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        # For subclasses of list, IPython prefers its own text to that of `_repr_mimebundle_`, unless there is this.
        alone = len(printer.stack) == 1  # not within another object
        printer.text(as_text(self._card()) if alone else repr(self))
