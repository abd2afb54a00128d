"""The query behind the cards of clients and clusters: the nodes and their statistics, within a second, and no error.

Something is shown of an object also while its cluster hangs, or is gone, so a failure is a sentence on the card. The
query is that of ``stats``: it does not count as a use of any entry.

Thread safety: thread-safe, and usable in a child process after a fork.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pyrocache.client.context import ClientContext
from pyrocache.client.options import stats_of
from pyrocache.client.views import client_title, of_client, of_problem
from pyrocache.cluster.routing import Member
from pyrocache.display.card import Card
from pyrocache.errors import ClientClosed, PyroCacheError
from pyrocache.net.deadline import Deadline
from pyrocache.tracebacks import came_from_outside

QUERY_SECONDS = 0.8
"""The most time for a query, whatever the client's timeout is: with all else, a card takes less than a second. As
elsewhere, resolving the host name of a name server is not included."""


class Overview(NamedTuple):
    """What was found out about a cluster.

    Attributes:
        members: its nodes.
        stats: their `Stats`; None if there are none.
        problem: why there are none, or what else is wrong, in a sentence; empty if nothing is.
        closed: whether the client is closed.
    """

    members: Sequence[Member]
    stats: Any
    problem: str = ""
    closed: bool = False


def attempt(query: Callable[[], Overview]) -> Overview:
    """Return what a query returns, or why it fails. Raises only what came from outside, such as an interrupt."""
    try:
        return query()
    except PyroCacheError as error:
        if came_from_outside(error):
            raise
        return Overview((), None, str(error), isinstance(error, ClientClosed))
    except Exception as error:  # a front end would show a traceback in place of the card
        if came_from_outside(error):
            raise
        return Overview((), None, f"The cluster could not be asked: {type(error).__name__}: {error}")


def ask(context: ClientContext[Any]) -> Overview:
    """Return the nodes and their `Stats`. Raises as `PyroCacheClient.stats`."""
    answers = context.backend.stats(Deadline(QUERY_SECONDS))
    stats = stats_of(context, answers)
    return Overview([member for member, _ in answers], stats, context.backend.nameserver_problem)


def card(kind: str, context: ClientContext[Any]) -> Card:
    """Return the card of a client, from one query."""
    config = context.config
    title = client_title(kind, config.namespace)
    found = attempt(lambda: ask(context))
    if found.stats is None:
        return of_problem(title, config.nameserver, found.problem, closed=found.closed)
    return of_client(title, config.nameserver, config.namespace, found.members, found.stats, found.problem)
