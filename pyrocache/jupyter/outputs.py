"""Record what a cell displays while it is displayed, and display it again.

`Recorder` wraps, on the objects that IPython uses, the methods through which output passes: ``write`` of the standard
streams, ``publish`` and ``clear_output`` of the display publisher, ``write_format_data`` of the display hook. The
output of a program that writes to the file descriptors is recorded as far as the kernel passes it through a stream.

An output is a dict of builtin types with a ``type``:

* ``stream``: ``name`` (stdout or stderr) and ``text``.
* ``display``: ``data`` (by MIME type), ``metadata``, ``id`` (of the display, or None), ``update`` (of one that an
  earlier cell has made).
* ``result``: ``data`` and ``metadata`` of the last expression.

An update of a recorded display replaces it, and clearing removes what was recorded: so a cell with a live picture
takes the place of one picture. Views of widgets are left out, as their state is in the kernel that made them.

Thread safety: output of other threads while the cell runs is recorded too; the rest is for the thread that runs the
cell.
"""

from __future__ import annotations

import json
import sys
from base64 import b64encode
from collections.abc import Callable
from typing import Any, Final

from pyrocache.client.context import MISSING

MOST_BYTES: Final = 16 * 2**20
"""Characters and bytes of output that are recorded of one cell."""

_WIDGET = "application/vnd.jupyter.widget-"


class Recorder:
    """Records output from `begin` to `end`.

    Args:
        shell: IPython's.
        most: bounds what is recorded.

    Attributes:
        cut: whether there was more output than ``most``.
    """

    def __init__(self, shell: Any, most: int = MOST_BYTES) -> None:
        self.cut = False
        self._shell = shell
        self._most = most
        self._size = 0
        self._outputs: list[dict[str, Any]] = []
        self._clear_next = False
        self._active = False
        self._passing = 0  # IPython's own methods that are running; what they write is no output of its own
        self._wrapped: list[tuple[Any, str, Any, Any]] = []

    def begin(self) -> None:
        """Wrap the methods. An interrupt must not come in between, see `interrupts.py`."""
        self._active = True
        for name in ("stdout", "stderr"):
            self._wrap(getattr(sys, name), "write", self._write_to(name))
        publisher, hook = self._shell.display_pub, self._shell.displayhook
        self._wrap(publisher, "publish", self._publish)
        self._wrap(publisher, "clear_output", self._clear_output)
        # In a terminal, the hook writes the prompt and the text between these two.
        self._wrap(hook, "start_displayhook", self._start)
        self._wrap(hook, "write_format_data", self._result)
        self._wrap(hook, "finish_displayhook", self._finish)

    def end(self) -> None:
        """Unwrap the methods, unless the cell has wrapped them again. Likewise."""
        self._active = False
        for owner, name, before, wrapper in reversed(self._wrapped):
            if vars(owner).get(name) is wrapper:
                if before is MISSING:
                    delattr(owner, name)
                else:
                    setattr(owner, name, before)
        self._wrapped.clear()

    def outputs(self) -> list[dict[str, Any]]:
        """Return what was recorded, in order."""
        return [
            {**output, "text": "".join(output["text"])} if output["type"] == "stream" else output
            for output in self._outputs
        ]

    def _wrap(self, owner: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        try:
            before = vars(owner).get(name, MISSING)
            wrapper = make(getattr(owner, name))
            setattr(owner, name, wrapper)
        except (AttributeError, TypeError):  # None, or an object that takes no attributes: it is not recorded
            return
        self._wrapped.append((owner, name, before, wrapper))

    def _write_to(self, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def write(text: str) -> Any:
                written = original(text)
                if self._active and not self._passing:
                    self._record_text(name, str(text))
                return written

            return write

        return make

    def _record_text(self, name: str, text: str) -> None:
        self._clear_if_due()
        room = 0 if self.cut else self._most - self._size
        if len(text) > room:
            self.cut, text = True, text[:room]
        self._size += len(text)
        last = self._outputs[-1] if self._outputs else None
        if last is None or last["type"] != "stream" or last["name"] != name:
            self._outputs.append({"type": "stream", "name": name, "text": [text]})
        else:
            last["text"].append(text)

    def _publish(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def publish(data: Any, metadata: Any = None, *arguments: Any, **options: Any) -> Any:
            self._pass(original, data, metadata, *arguments, **options)
            if self._active:
                transient = options.get("transient") or {}
                self._display(data, metadata, transient.get("display_id"), bool(options.get("update")))

        return publish

    def _display(self, data: Any, metadata: Any, number: Any, update: bool) -> None:
        self._clear_if_due()
        output = {"type": "display", **_plain(data, metadata), "id": number, "update": update}
        if number is not None and update:
            found = [each for each in self._outputs if each.get("id") == number]
            if found:
                more = sum(_size(output) - _size(each) for each in found)
                if self._size + more > self._most:
                    self.cut = True
                    return
                self._size += more
                for each in found:
                    each.update(output, update=each["update"])
                return
        self._record(output)

    def _record(self, output: dict[str, Any]) -> None:
        size = _size(output)
        if self._size + size > self._most:
            self.cut = True
        elif output["data"] and not self.cut:
            self._size += size
            self._outputs.append(output)

    def _clear_output(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def clear_output(wait: bool = False) -> Any:
            self._pass(original, wait)
            self._clear_next = True
            if not wait:
                self._clear_if_due()

        return clear_output

    def _clear_if_due(self) -> None:
        if self._clear_next:
            self._clear_next = self.cut = False
            self._outputs, self._size = [], 0

    def _start(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def start_displayhook() -> Any:
            self._passing += 1
            return original()

        return start_displayhook

    def _result(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def write_format_data(format_dict: Any, md_dict: Any = None) -> Any:
            self._pass(original, format_dict, md_dict)
            if self._active:
                self._clear_if_due()
                self._record({"type": "result", **_plain(format_dict, md_dict)})

        return write_format_data

    def _finish(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def finish_displayhook() -> Any:
            try:
                return original()
            finally:
                self._passing -= 1

        return finish_displayhook

    def _pass(self, original: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        self._passing += 1
        try:
            original(*arguments, **options)
        finally:
            self._passing -= 1


def _plain(data: Any, metadata: Any) -> dict[str, Any]:
    """Return data and metadata of a display as they are stored."""
    plain = {}
    for kind, value in dict(data).items():
        if not kind.startswith(_WIDGET) and (found := _plain_value(value)) is not None:
            plain[str(kind)] = found
    return {"data": plain, "metadata": _plain_value(dict(metadata or {})) or {}}


def _plain_value(value: Any) -> Any:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return b64encode(value).decode()  # as messages to the notebook have it
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        return None


def _size(output: dict[str, Any]) -> int:
    values = output["data"].values()
    return sum(len(value) if isinstance(value, str) else len(json.dumps(value)) for value in values)


def replay(shell: Any, outputs: list[dict[str, Any]]) -> None:
    """Display outputs again, in their order."""
    for output in outputs:
        if output["type"] == "stream":
            stream = getattr(sys, output["name"])
            stream.write(output["text"])
            stream.flush()  # or what follows on the other stream could come first
        elif output["type"] == "display":
            transient = {} if output["id"] is None else {"display_id": output["id"]}
            shell.display_pub.publish(
                output["data"], output["metadata"], transient=transient, update=output["update"]
            )
        else:
            hook = shell.displayhook
            hook.start_displayhook()
            hook.write_output_prompt()
            hook.write_format_data(output["data"], output["metadata"])
            hook.finish_displayhook()
