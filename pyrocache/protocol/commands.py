"""The table of commands: one row for each remote method of `CacheNode`.

Clients read from it what may be retried (see `pyrocache.client.routing.retry`). Nodes read from it what may be called
and on which thread it runs. A method that is not in this table cannot be called. ``docs/wire-format.md`` describes
names and arguments. Pure: constants only.
"""

from __future__ import annotations

from enum import Enum


class Scope(Enum):
    """The subject of a command, which determines the nodes that it is sent to."""

    KEY = "key"
    """One key: its owner. Arguments begin with the number of the view and the key."""
    KEYS = "keys"
    """Many keys: each owner gets its part. Arguments begin with the number of the view and the keys."""
    NAMESPACE = "namespace"
    """A namespace or a tag: every node, or one after the other. Arguments begin with the number of the view."""
    NODE = "node"
    """The node itself."""


class Runs(Enum):
    """The execution mode of a command on a node."""

    INLINE = "inline"
    """On the I/O thread: takes microseconds, or a millisecond for a batch."""
    WORKER = "worker"
    """On a worker thread: walks over entries."""
    DEFERRED = "deferred"
    """On the I/O thread; the reply may be deferred until another caller acts. The method takes the `Session` of its
    connection as first argument."""


class Command:
    """One remote method.

    Attributes:
        name: the method of `CacheNode`.
        scope: its subject.
        idempotent: executing it twice in a row has the same effect as executing it once. The second reply may differ
            for `invalidate_tag`, `fill` and `abandon`.
        runs: how a node runs it.
        mutates: it may change the store.
        operation: what errors call it, if not by its name.
        large: a request may hold one value of the node's ``--max-value``. Any other request is at most a batch long.
        once: it must not be executed again after its reply was lost, because it changes the store (another client may
            have changed the entry meanwhile) or is not idempotent. See `client.routing.retry`.
        open: a caller that is admitted without the secret may call it (see `protocol.handshake.Strangers`).
    """

    __slots__ = ("idempotent", "large", "mutates", "name", "once", "open", "operation", "runs", "scope")

    def __init__(
        self,
        name: str,
        scope: Scope,
        idempotent: bool,
        runs: Runs,
        mutates: bool,
        *,
        operation: str = "",
        large: bool = False,
        open: bool = False,
    ) -> None:
        self.name = name
        self.scope = scope
        self.idempotent = idempotent
        self.runs = runs
        self.mutates = mutates
        self.operation = operation
        self.large = large
        self.open = open
        self.once = mutates or not idempotent  # an attribute, because it is read on each call

    @property
    def title(self) -> str:
        """Return what errors call it."""
        return self.operation or self.name


GET = Command("get", Scope.KEY, True, Runs.INLINE, False)  # touch_seconds sets a TTL, which may be done twice
GET_WITH_VERSION = Command("get_with_version", Scope.KEY, True, Runs.INLINE, False)
GET_WITH_TIMES = Command("get_with_times", Scope.KEY, True, Runs.INLINE, False)
GET_ENTRY = Command("get_entry", Scope.KEY, True, Runs.INLINE, False)
CONTAINS = Command("contains", Scope.KEY, True, Runs.INLINE, False)
TTL = Command("ttl", Scope.KEY, True, Runs.INLINE, False)
SET = Command("set", Scope.KEY, True, Runs.INLINE, True, large=True)
PUT = Command("put", Scope.KEY, True, Runs.INLINE, True, large=True)
PUT_IF = Command("put", Scope.KEY, False, Runs.INLINE, True, large=True)  # the same method, with a condition
SETDEFAULT = Command("setdefault", Scope.KEY, False, Runs.INLINE, True, large=True)
INCR = Command("incr", Scope.KEY, False, Runs.INLINE, True)
TOUCH = Command("touch", Scope.KEY, True, Runs.INLINE, True)
DELETE = Command("delete", Scope.KEY, False, Runs.INLINE, True)
POP = Command("pop", Scope.KEY, False, Runs.INLINE, True)

GET_MANY = Command("get_many", Scope.KEYS, True, Runs.INLINE, False)
GET_ENTRIES = Command("get_entries", Scope.KEYS, True, Runs.INLINE, False)
CHECK_VIEW = Command("get_many", Scope.KEYS, True, Runs.INLINE, False, operation="scan")  # without keys
SET_MANY = Command("set_many", Scope.KEYS, True, Runs.INLINE, True, large=True)
DELETE_MANY = Command("delete_many", Scope.KEYS, False, Runs.INLINE, True)
TOUCH_MANY = Command("touch_many", Scope.KEYS, True, Runs.INLINE, True)

LEASE = Command("lease", Scope.KEY, True, Runs.DEFERRED, False)
FILL = Command("fill", Scope.KEY, True, Runs.INLINE, True, large=True)
ABANDON = Command("abandon", Scope.KEY, True, Runs.INLINE, False)
ACQUIRE = Command("acquire", Scope.KEY, True, Runs.DEFERRED, False)
RENEW = Command("renew", Scope.KEY, True, Runs.INLINE, False)
RELEASE = Command("release", Scope.KEY, False, Runs.INLINE, False)
HOLDERS = Command("holders", Scope.KEY, True, Runs.INLINE, False)
WITHDRAW = Command("withdraw", Scope.NODE, True, Runs.DEFERRED, False)  # for the session; it never waits

SCAN = Command("scan", Scope.NAMESPACE, True, Runs.WORKER, False)
COUNT = Command("count", Scope.NAMESPACE, True, Runs.WORKER, False)
DELETE_PREFIX = Command("delete_prefix", Scope.NAMESPACE, False, Runs.WORKER, True)
CLEAR = Command("clear", Scope.NAMESPACE, False, Runs.INLINE, True)
INVALIDATE_TAG = Command("invalidate_tag", Scope.NAMESPACE, True, Runs.INLINE, True)

PING = Command("ping", Scope.NODE, True, Runs.INLINE, False)
MEMBERS = Command("members", Scope.NODE, True, Runs.INLINE, False)
HOT_KEYS = Command("hot_keys", Scope.NODE, True, Runs.INLINE, False)
STATS = Command("stats", Scope.NODE, True, Runs.WORKER, False)
RESET_STATS = Command("reset_stats", Scope.NODE, True, Runs.WORKER, False)

ISSUE_TOKEN = "issue_token"
"""A method of every server: it returns a token, see `server.tokens`. The server answers it, and not its object."""

COMMANDS: dict[str, Command] = {
    command.name: command
    for command in list(globals().values())
    if isinstance(command, Command) and command not in (PUT_IF, CHECK_VIEW)
}
"""Every command, by the name of its method."""
