"""The commands ``pyrocache dump`` and ``pyrocache load``: the entries of a namespace as a file.

`client.features.dump` copies the entries. Here are the files, the progress and the sentences. A dump has its name only
when it is complete: until then, it is a file without a name, where the system has that, so that nothing is left behind
even by SIGKILL. A file to be loaded is read to its end before anything is stored; standard input is not.

Thread safety: runs in the main thread.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from pyrocache import __version__
from pyrocache.cli.options import (
    NameServerOption,
    NamespaceOption,
    SecretFileOption,
    TimeoutOption,
    client_of,
)
from pyrocache.cli.output import report, write
from pyrocache.cli.tls_options import with_tls
from pyrocache.config import DEFAULT_NAMESERVER, DEFAULT_TIMEOUT_SECONDS, Encryption, format_size
from pyrocache.errors import CacheUnavailable, ConfigurationError, PyroCacheError

if TYPE_CHECKING:
    from pyrocache.client.client import PyroCacheClient
    from pyrocache.client.context import ClientContext
    from pyrocache.client.dump_format import Reader

_STANDARD = "-"
_MODE = 0o600  # the entries are nobody else's business


@with_tls()
def dump_command(
    tls: Encryption,
    file: Annotated[
        str, typer.Argument(help="The file; - for standard output.", metavar="FILE", show_default=False)
    ],
    namespace: NamespaceOption = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Write all entries of a namespace to a file, with their expiry and tags. Namespaces within it are not included.

    Values are not decoded, and the cluster is not changed. A file that exists is replaced once the dump is complete.
    Exit status 1, and the file is left as it was, if a node does not answer.
    """
    from pyrocache.client.dump_format import Writer, name_of
    from pyrocache.client.features.dump import dump

    _end_with_an_exception()
    with client_of(nameserver, namespace, timeout, secret_file, None, tls) as cache:
        context = cache._context
        begin, total = time.monotonic(), len(cache)
        with _output(file) as output, _progress("Dumping", total, "entries") as advance:
            counted = _Counted(output)
            writer = Writer(counted.write, context.prefix, created=time.time(), by=__version__)
            dump(context, writer, advance)
            writer.end()
    seconds = time.monotonic() - begin
    _say(
        f"Dumped {_entries(writer.entries)} of {name_of(context.config.namespace)}, {format_size(counted.bytes)}, in "
        f"{seconds:.1f} s.",
        aside=file == _STANDARD,
    )


@with_tls()
def load_command(
    context: typer.Context,
    tls: Encryption,
    file: Annotated[
        str, typer.Argument(help="The file; - for standard input.", metavar="FILE", show_default=False)
    ],
    namespace: Annotated[
        str | None,
        typer.Option(
            "--namespace",
            "-n",
            help="Load into this namespace; by default, into that of the dump.",
            show_default=False,
        ),
    ] = None,
    nameserver: NameServerOption = DEFAULT_NAMESERVER,
    secret_file: SecretFileOption = None,
    timeout: TimeoutOption = DEFAULT_TIMEOUT_SECONDS,
) -> None:
    """Store the entries of a dump. Those that have expired are left out; those that exist already are replaced.

    Load only files that you trust: programs that read the values unpickle them. A damaged file is refused before
    anything is stored; from standard input, up to where it is damaged. Signed values can be loaded only into the
    namespace of the dump. Exit status 1 if entries could not be stored.
    """
    from pyrocache.client.dump_format import Reader, name_of
    from pyrocache.client.features.dump import Loaded, check_signed, load

    _end_with_an_exception()
    source = context.get_parameter_source("namespace")
    if (
        source is None or source.name != "COMMANDLINE"
    ):  # the settings say where programs work, not what this file is of
        namespace = None
    done = Loaded()
    with _input(file) as data, client_of(nameserver, None, timeout, secret_file, None, tls) as cache:
        begin, size = time.monotonic(), _size(data)
        if size is not None:
            with _progress("Checking", size, "bytes") as advance:
                reader = Reader(_reading(data, advance))
                into = _context(cache, reader, namespace)
                for records in reader.blocks():
                    check_signed(records, reader.header, into)
            data.seek(0)
        try:
            with _progress("Loading", size, "bytes") as advance:
                reader = Reader(_reading(data, advance))
                into = _context(cache, reader, namespace)
                load(into, reader, loaded=done)
        except (ConfigurationError, CacheUnavailable) as error:
            raise PyroCacheError(f"{error} Until then, {_entries(done.stored)} had been loaded.") from None
    were = "was" if done.expired == 1 else "were"
    expired = f" {_entries(done.expired)} had expired, and {were} left out." if done.expired else ""
    seconds = time.monotonic() - begin
    write(
        f"Loaded {_entries(done.stored)} into {name_of(into.config.namespace)} in {seconds:.1f} s.{expired}"
    )
    if done.failed:
        raise PyroCacheError(f"{_entries(done.failed)} could not be stored; the first: {done.problem}")


def _context(cache: PyroCacheClient, reader: Reader, namespace: str | None) -> ClientContext[Any]:
    """Return the context of the namespace to load into; of that of the dump if ``namespace`` is None."""
    context = cache._context
    for name in reader.header.path if namespace is None else (namespace,):
        context = context.namespace(name)
    return context


class _Counted:
    """A file to write to, whose bytes are counted."""

    def __init__(self, file: BinaryIO) -> None:
        self.bytes = 0
        self._file = file

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self.bytes += len(data)


def _end_with_an_exception() -> None:
    """Let SIGTERM and SIGHUP raise `SystemExit`, so that the cursor comes back and no file stays behind."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _say(text: str, *, aside: bool) -> None:
    """Print what was done; to standard error if standard output has the dump."""
    if aside:
        report(text)
    else:
        write(text)


# Files --------------------------------------------------------------------------------------------------------


@contextmanager
def _output(path: str) -> Iterator[BinaryIO]:
    """Give a file to write to, which gets its name at the end. Without an exception, it is then on the disk."""
    if path == _STANDARD:
        if sys.stdout is None:
            raise ConfigurationError("There is no standard output to write the dump to.")
        if sys.stdout.isatty():
            raise ConfigurationError("A dump is not text: name a file, or redirect standard output.")
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if os.path.exists(path) and not os.path.isfile(path):
        if os.path.isdir(path):
            raise ConfigurationError(f"{path} is a directory: name a file.")
        with _opened(path, "wb") as device:  # a pipe, also one of the shell: >(gzip > FILE)
            yield device
        return
    path = os.path.realpath(path)
    try:
        descriptor, temporary = _temporary(path)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror}.") from None
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(descriptor)
            if temporary is None:
                temporary = _named(descriptor, path)
        os.replace(temporary, path)
        temporary = None
        _sync_directory(path)
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)


def _temporary(path: str) -> tuple[int, str | None]:
    """Return a new file in the directory of ``path``, and its name; None if the system has files without one."""
    directory = os.path.dirname(path)
    nameless = getattr(os, "O_TMPFILE", 0)
    if nameless and os.path.exists("/proc/self/fd"):
        with suppress(OSError):  # not every file system has them
            return os.open(directory, nameless | os.O_WRONLY | os.O_CLOEXEC, _MODE), None
    return tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", suffix=".part", dir=directory)


def _named(descriptor: int, path: str) -> str:
    """Give an open file without a name one beside ``path``, and return it."""
    directory, name = os.path.split(path)
    beside = os.path.join(directory, f".{name}.{os.urandom(6).hex()}.part")
    links = os.open("/proc/self/fd", os.O_RDONLY | os.O_DIRECTORY)
    try:  # without a directory, `os.link` would not follow the link
        os.link(str(descriptor), beside, src_dir_fd=links, follow_symlinks=True)
    finally:
        os.close(links)
    return beside


def _sync_directory(path: str) -> None:
    """Have the name of a file on the disk too, where the file system can do that."""
    with suppress(OSError):
        descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _input(path: str) -> Iterator[BinaryIO]:
    if path != _STANDARD:
        with _opened(path, "rb") as file:
            yield file
        return
    if sys.stdin is None:
        raise ConfigurationError("There is no standard input to read the dump from.")
    yield sys.stdin.buffer


@contextmanager
def _opened(path: str, mode: str) -> Iterator[BinaryIO]:
    try:
        file = open(path, mode)  # noqa: SIM115
    except OSError as error:
        verb = "written" if "w" in mode else "read"
        raise ConfigurationError(f"{path} cannot be {verb}: {error.strerror}.") from None
    with file:
        yield file  # type: ignore[misc]


def _size(file: BinaryIO) -> int | None:
    """Return the bytes of a file that can be read twice; None for a pipe."""
    try:
        status = os.fstat(file.fileno())
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) and file.tell() == 0 else None


def _reading(file: BinaryIO, advance: Callable[[int], object]) -> Callable[[int], bytes]:
    """Return a function that reads a file and tells how many bytes it has read."""
    count = 0

    def read(size: int) -> bytes:
        nonlocal count
        data = file.read(size)
        count += len(data)
        advance(count)
        return data

    return read


@contextmanager
def _progress(what: str, total: int | None, unit: str) -> Iterator[Callable[[int], object]]:
    """Give a function that takes how much is done. It shows that on standard error, if this is a terminal."""
    if sys.stderr is None or not sys.stderr.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    amount = DownloadColumn() if unit == "bytes" else MofNCompleteColumn()
    with Progress(
        TextColumn(what),
        BarColumn(),
        amount,
        TimeRemainingColumn(),
        console=Console(file=sys.stderr),
        transient=True,
    ) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.update(task, completed=done)
