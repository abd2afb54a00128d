"""`ClientContext`: what the features of one client share: settings, key prefix, codec, ``on_error``, statistics.

`PyroCacheClient` is a facade over one `ClientContext`. Each namespace made from a client has a context of its own over
the same backend. Features (bulk, scan, load_once, ...) use the context and its `Backend` and no lower layer. Closing a
context closes the contexts made from it; only the first context closes the backend.

Thread safety: thread-safe, and usable in a child process after a fork.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from enum import Enum
from functools import lru_cache
from types import EllipsisType
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, Self, SupportsFloat, TypeAlias, TypeVar, cast

from pyrocache.client.backend import Backend
from pyrocache.client.codec import Codec
from pyrocache.client.keys.encoding import AnyCodec, Encode, Encoding, decode_key, encode_key
from pyrocache.client.keys.format import namespace_prefix, path_text, utf8
from pyrocache.client.signing import Signer, SigningCodec
from pyrocache.config import ClientConfig, seconds_until, ttl_to_seconds
from pyrocache.errors import (
    AuthenticationError,
    CacheUnavailable,
    ClientClosed,
    ConfigurationError,
    CorruptValue,
    InvalidKey,
    PyroCacheError,
    SerializationError,
    TamperedValue,
)
from pyrocache.late_imports import at_first_use
from pyrocache.net.deadline import Deadline
from pyrocache.net.failures import CLOSED
from pyrocache.protocol.limits import KEEP_TTL, MAX_TAG_BYTES, MAX_TAGS
from pyrocache.runtime import at_fork, secret_file
from pyrocache.runtime.log import logger
from pyrocache.runtime.throttle import Throttle
from pyrocache.tracebacks import brief

_WARNING_SECONDS = 60.0
_warnings = Throttle(_WARNING_SECONDS)  # of the process: a web application may have many clients

_T = TypeVar("_T")

_Other = TypeVar("_Other", bound="AnyBackend")

if TYPE_CHECKING:
    import typing_extensions  # for type checkers only: Python 3.11 knows no defaults of type variables

    from pyrocache.client.stats import ClientStats

    _Backend = typing_extensions.TypeVar("_Backend", bound="AnyBackend", default=Backend)
else:
    _Backend = TypeVar("_Backend")


class AnyBackend(Protocol):
    """What a context itself needs of the backend of any client."""

    @property
    def retries(self) -> dict[str, int]:
        """What the router did after failures."""

    def disconnect(self) -> None:
        """Close the connections; later calls connect again."""

    def close(self) -> None:
        """Close the connections; every later call raises `ClientClosed`."""


class Missing(Enum):
    """The type of `MISSING`."""

    MISSING = "MISSING"

    def __repr__(self) -> str:
        return self.name


MISSING: Final = Missing.MISSING
"""Marks an omitted default or an absent value, because None is a value like any other."""


class DefaultTtl(Enum):
    """The type of `DEFAULT_TTL`."""

    DEFAULT_TTL = "DEFAULT_TTL"

    def __repr__(self) -> str:
        return self.name


DEFAULT_TTL: Final = DefaultTtl.DEFAULT_TTL
"""A time to live: the one that the client or the namespace was created with. Without one, entries do not expire."""

Duration: TypeAlias = SupportsFloat | timedelta
"""Seconds, as a number of any type, or a timedelta."""

Ttl: TypeAlias = Duration | None
"""Time to live: seconds or a timedelta above 0; None for no expiry."""

NewTtl: TypeAlias = Ttl | DefaultTtl
"""As `Ttl`; `DEFAULT_TTL` is that of the client."""

KeptTtl: TypeAlias = NewTtl | EllipsisType
"""As `NewTtl`; ``...`` keeps the expiry that the entry has."""

When: TypeAlias = SupportsFloat | datetime
"""A point in time: an aware datetime, or seconds since the epoch, as ``time.time()`` returns them."""


class _Figures:
    """The statistics of one client. Thread-safe."""

    def __init__(self) -> None:
        self.now: dict[str, int] = {}
        self._reset_lock()
        at_fork.in_child(self._reset_lock)  # another thread of the parent may have held it

    def count(self, figure: str, by: int) -> None:
        """Add to one of the statistics, a field of `ClientStats`."""
        with self._lock:
            # Replaced, not changed, so that `stats` reads consistent values without the lock.
            self.now = {**self.now, figure: self.now.get(figure, 0) + by}

    def reset(self) -> None:
        """Set all of them to 0."""
        with self._lock:
            self.now = {}

    def _reset_lock(self) -> None:
        self._lock = threading.Lock()  # guards: now


class _OtherBackends:
    """The backends of other kinds that one client and its namespaces have, by what made them. Thread-safe."""

    def __init__(self) -> None:
        self._made: dict[object, Any] = {}
        self._closed = False

    def get(self, make: Callable[[ClientConfig], Any], config: ClientConfig) -> Any:
        """Return the backend that ``make`` makes when it is first needed."""
        backend = self._made.get(make)
        if backend is None:
            backend = self._made.setdefault(make, make(config))  # atomic: of two threads, one's is kept
        if self._closed:  # looked at last: `close` may have raced with us
            backend.close()
        return backend

    def all(self) -> list[Any]:
        """Return those that were made."""
        return list(self._made.values())

    def close(self) -> None:
        """Close them, and each that is made from now on."""
        self._closed = True
        for backend in self.all():
            backend.close()


class ClientContext(Generic[_Backend]):
    """The settings, codec, backend and statistics of one client, or of one namespace of it.

    Args:
        config: settings, including the namespace.
        backend: sends the requests.
        root: whether `close` closes the backend; contexts of namespaces share it and leave it open.
        signer: signs values and keys; by default, made of the keys in the file that the settings name.

    Attributes:
        config, backend: as given; once closed, every method of the backend raises `ClientClosed`.
        codec: encodes and decodes values.
        prefix: the bytes that begin every encoded key.
        encode: the `Encoding.encode` of signed keys; None for keys that are not signed.
        sign_part: returns the signed form of a part of a key; None for keys that are not signed.
        timeout: seconds for a call.
        ttl_seconds: seconds to live of an entry that is stored without a TTL; None for no expiry.
        warnings: limits the warnings about what counts as a miss.
    """

    warnings = _warnings

    def __init__(
        self, config: ClientConfig, backend: _Backend, *, root: bool = True, signer: Signer | None = None
    ) -> None:
        self.config = config
        self.backend = backend
        codec = Codec(config.serializer, config.codec, config.allowed_classes, config.compress_above)
        self.codec: AnyCodec = codec
        self.encode: Encode | None = None
        self.sign_part: Callable[[bytes], bytes] | None = None
        if config.signing_key_file is not None and signer is None:
            signer = Signer(_signing_keys(config))
        if signer is not None:
            self.codec = SigningCodec(codec, signer, _name_of(config.namespace), config.counters)
            self.encode = Encoding(sign=signer.sign_part).encode
            self.sign_part = signer.sign_part
        self._signer = signer
        self.prefix = namespace_prefix(*config.namespace)
        self.timeout = config.timeout
        self.ttl_seconds = config.ttl_seconds
        self._root = root
        # Weak references, so that an unused namespace is collected.
        self._namespaces: weakref.WeakSet[ClientContext[_Backend]] = weakref.WeakSet()
        self._figures = _Figures()
        self._others = _OtherBackends()
        self._with_others: dict[object, ClientContext[Any]] = {}

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return isinstance(self.backend, _ClosedBackend)

    def namespace(
        self, name: str, ttl_seconds: NewTtl = DEFAULT_TTL, counters: bool | None = None
    ) -> ClientContext[_Backend]:
        """Return the context of a namespace within this one."""
        path, ttl = (*self.config.namespace, name), self.new_ttl(ttl_seconds)
        counters = self.config.counters if counters is None else counters
        config = replace(self.config, namespace=path, ttl_seconds=ttl, counters=counters)
        inner = ClientContext(config, self.backend, root=False, signer=self._signer)
        inner._others = self._others
        self._namespaces.add(inner)
        if self.closed:  # check again: `close` may have raced with us
            inner.close()
            _ = self.backend.retries  # raises `ClientClosed`
        return inner

    def close(self, reason: str = CLOSED) -> None:
        """Make every later call raise `ClientClosed` with ``reason``, also in the namespaces made from this context."""
        # The backend is replaced, so that calls need not check a flag.
        if not self.closed:
            backend, self.backend = self.backend, cast(Any, _ClosedBackend(reason))
            if self._root:
                backend.close()
                self._others.close()
        for inner in list(self._namespaces):
            inner.close(reason)

    def disconnect(self) -> None:
        """Close the connections; later calls connect again. Does nothing once the context is closed."""
        if not self.closed:
            self.backend.disconnect()
            for other in self._others.all():
                other.disconnect()

    def with_backend(self, make: Callable[[ClientConfig], _Other]) -> ClientContext[_Other]:
        """Return this context with a backend of another kind, which is made when it is first needed.

        It has the settings and the statistics of this one. The backend is closed and disconnected with this context.

        Args:
            make: makes the backend, and tells its kind; a function or a class method.

        Raises:
            ClientClosed: this context is closed.
        """
        if self.closed:
            _ = self.backend.retries  # raises `ClientClosed`
        found = self._with_others.get(make)
        if found is None:
            found = object.__new__(ClientContext)
            found.__dict__.update(self.__dict__, backend=self._others.get(make, self.config))
            self._with_others[make] = found
        return found

    def changed(self, **attributes: Any) -> Self:
        """Return this context with other attributes, for one operation: `close` does not reach it.

        It has the connections and the statistics of this one.
        """
        found = object.__new__(type(self))
        found.__dict__.update(self.__dict__, **attributes)
        return found

    @property
    def figures(self) -> ClientStats:
        """The statistics of this client, without `retries`."""
        with at_first_use:
            from pyrocache.client.stats import ClientStats  # imported here: making its dataclasses takes 5 ms
        return ClientStats(**self._figures.now)

    @property
    def retries(self) -> dict[str, int]:
        """What the routers did after failures, for `ClientStats`."""
        counts = Counter(self.backend.retries)
        for other in self._others.all():
            counts.update(other.retries)
        return dict(counts)

    def deadline(self, seconds: float | None = None) -> Deadline:
        """Return the deadline of a call that begins now."""
        return Deadline(self.timeout if seconds is None else seconds)

    def encode_key(self, key: object) -> bytes:
        """Return the canonical bytes of a key in this namespace. Raises `InvalidKey` or `KeyTooLarge`."""
        return encode_key(key, self.prefix, self.encode)

    def decode(self, key: bytes, frame: Any) -> Any:
        """Return the value in a value frame. Counts a corrupt or tampered one. Raises as `Codec.decode`."""
        try:
            return self.codec.decode(key, frame)
        except SerializationError as error:
            self._count_bad(error)
            raise

    def read(self, key: bytes, frame: Any, missing: Any) -> Any:
        """Return the value in a value frame; if it does not decode, apply ``on_undecodable`` as `undecodable` does."""
        try:
            return self.codec.decode(key, frame)
        except SerializationError as error:
            return self.undecodable(error, missing)

    def read_key(self, encoded: bytes, missing: Any) -> Any:
        """Return a decoded key; if it does not decode, apply ``on_undecodable`` as `undecodable` does."""
        try:
            return decode_key(encoded, self.codec)
        except (InvalidKey, SerializationError) as error:
            return self.undecodable(error, missing)

    def encode_tag(self, tag: str) -> bytes:
        """Return the encoded tag, with the namespace's prefix: each namespace has tags of its own.

        Raises:
            TypeError: it is not a str.
            ValueError: it is longer than `MAX_TAG_BYTES` once encoded.
        """
        if not isinstance(tag, str):
            raise brief(TypeError(f"A tag is a str, not {type(tag).__name__}."))
        encoded = self.prefix + utf8(tag)
        if len(encoded) > MAX_TAG_BYTES:
            most = MAX_TAG_BYTES - len(self.prefix)
            raise brief(ValueError(f"A tag takes at most {most} bytes in UTF-8 here, not {len(encoded)}."))
        return encoded

    def decode_tag(self, tag: bytes) -> str:
        """Return the tag of which `encode_tag` returns these bytes."""
        name = tag.removeprefix(self.prefix)
        try:
            return name.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:  # another kind of client stored it
            return name.decode("utf-8", "backslashreplace")

    def encode_tags(self, tags: Iterable[str] | None) -> list[bytes] | None:
        """Return the encoded tags of an entry without duplicates; None for None. Raises as `encode_tag`."""
        if tags is None:
            return None
        if isinstance(tags, str) or not isinstance(tags, Iterable):
            raise brief(TypeError(f"tags is a list of str, not one {type(tags).__name__}."))
        encoded = list(dict.fromkeys(map(self.encode_tag, tags)))
        if len(encoded) > MAX_TAGS:
            raise brief(ValueError(f"An entry has at most {MAX_TAGS} tags, not {len(encoded)}."))
        return encoded

    def new_ttl(self, ttl_seconds: NewTtl) -> float | None:
        """Return the seconds to live of a new entry, None for no expiry. Raises as `ttl_to_seconds`."""
        return self.ttl_seconds if ttl_seconds is DEFAULT_TTL else ttl_to_seconds(ttl_seconds)

    def ttl(self, ttl_seconds: KeptTtl, expires_at: When | None = None) -> float | None:
        """Return a time to live as commands encode it; 0 if the time ``expires_at`` has passed.

        Raises:
            TypeError, ValueError: as `ttl_to_seconds` and `seconds_until`, or both arguments were given.
        """
        if expires_at is not None:
            if ttl_seconds is not DEFAULT_TTL:
                raise TypeError("An entry takes ttl_seconds or expires_at, not both.")
            return seconds_until(expires_at, time.time())
        if ttl_seconds is ...:
            return KEEP_TTL if self.ttl_seconds is None else -self.ttl_seconds  # of a new entry
        return self.new_ttl(ttl_seconds)

    def touch_ttl(self, ttl_seconds: NewTtl, expires_at: When | None) -> float | None:
        """Return the same for an entry that exists; ``...`` is not valid."""
        return self.new_ttl(ttl_seconds) if expires_at is None else self.ttl(ttl_seconds, expires_at)

    def missed(self, error: CacheUnavailable, value: _T) -> _T:
        """Apply ``on_error``: either raise ``error``, or count and log a miss and return ``value``."""
        if self.config.on_error == "raise" or isinstance(error, AuthenticationError):
            raise error
        self.count("misses_on_error")
        self._warn(error.source or type(error).__name__, "Counted as a miss: %s", error)
        return value

    def undecodable(self, error: PyroCacheError, value: _T) -> _T:
        """Apply ``on_undecodable``: either raise ``error``, or count and log it and return ``value``.

        Args:
            error: why a stored key or value does not decode.
        """
        self._count_bad(error)
        if self.config.on_undecodable == "raise":
            raise error
        self.count("undecodable")
        self._warn(str(error), "Counted as missing: %s", error)
        return value

    def _count_bad(self, error: PyroCacheError) -> None:
        if isinstance(error, CorruptValue):
            self.count("corrupt_values")
        elif isinstance(error, TamperedValue):
            self.count("tampered_values")

    def check_counters(self) -> None:
        """Raise `ConfigurationError` if this client signs ints, to which no node can add."""
        if self._signer is not None and not self.config.counters:
            raise ConfigurationError(
                f"incr and decr were not called: nodes compute ints that nobody signs, and this client reads signed "
                f"values only in {_name_of(self.config.namespace)}. Use a namespace for counters: "
                'namespace("counters", counters=True).'
            )

    def _warn(self, subject: Hashable, text: str, error: Exception) -> None:
        """Log a warning, unless there was one about the same subject within the last minute."""
        events = self.warnings.admit((self.config.nameserver, subject))
        if events > 1:
            text += f" ({events} times since the last such warning)"
        if events:
            logger("pyrocache.client").warning(text, error)

    def count(self, figure: str, by: int = 1) -> None:
        """Add to one of this client's statistics, a field of `ClientStats`."""
        self._figures.count(figure, by)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.config,)

    def reset_figures(self) -> None:
        """Set this client's statistics to 0."""
        self._figures.reset()
        for backend in (self.backend, *self._others.all()):
            backend.retries.update(dict.fromkeys(backend.retries, 0))


def _signing_keys(config: ClientConfig) -> Sequence[bytes]:
    """Return the keys that sign values. Raises `ConfigurationError` if nodes have one of them."""
    keys = secret_file.read(config.signing_key_file or "").all
    if config.secret is not None and not set(keys).isdisjoint(config.secret.keys):
        raise ConfigurationError(
            f"The signing key in {config.signing_key_file} is the secret, which nodes have, so signatures would not "
            "protect from them: make another key with: pyrocache secret --secret-file FILE"
        )
    return keys


def _name_of(namespace: tuple[str, ...]) -> str:
    """Return how errors name a namespace."""
    return f"namespace {path_text(namespace)}" if namespace else "the root namespace"


def _unpickled(config: ClientConfig) -> ClientContext:
    """Return the context of unpickled memoized functions: one for all of the same settings, with its connections."""
    try:
        return _shared_context(config)
    except TypeError:  # the user's codec is not hashable
        return ClientContext(config, Backend.of(config))


@lru_cache(maxsize=8)
def _shared_context(config: ClientConfig) -> ClientContext:
    return ClientContext(config, Backend.of(config))


class _ClosedBackend:
    """The backend of a closed context: every method raises `ClientClosed`."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def __getattr__(self, name: str) -> Any:
        raise ClientClosed(self._reason)
