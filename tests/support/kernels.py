"""Jupyter kernels, as processes of their own, for tests of what a notebook shows."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.processes import environment

PATIENCE_SECONDS = 60.0


class Kernel:
    """A kernel that runs cells.

    Attributes:
        manager, client: of `jupyter_client`.
    """

    def __init__(self, manager: Any, client: Any) -> None:
        self.manager, self.client = manager, client

    def run(self, code: str, hook: Any = None) -> Shown:
        """Run a cell and return what it has shown. ``hook`` is called with each message."""
        messages: list[Any] = []

        def take(message: Any) -> None:
            messages.append(message)
            if hook is not None:
                hook(message)

        reply = self.client.execute_interactive(code, output_hook=take, timeout=PATIENCE_SECONDS)["content"]
        return Shown(reply, messages)

    def start(self, code: str) -> str:
        """Send a cell, and return the id of the request without waiting."""
        return str(self.client.execute(code))

    def next_text(self) -> str:
        """Return the next text that a cell which was sent writes."""
        while (message := self.client.get_iopub_msg(timeout=PATIENCE_SECONDS))["msg_type"] != "stream":
            pass
        return str(message["content"]["text"])

    def completions(self, line: str) -> list[str]:
        """Return what the kernel offers at the end of a line."""
        reply = self.client.complete(line, len(line), reply=True, timeout=PATIENCE_SECONDS)
        return list(reply["content"]["matches"])

    def finish(self, request: str) -> Shown:
        """Return what a cell that was sent has shown, once it has ended."""
        messages: list[Any] = []
        while True:
            message = self.client.get_iopub_msg(timeout=PATIENCE_SECONDS)
            if message["parent_header"].get("msg_id") != request:
                continue
            if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
                break
            messages.append(message)
        while (reply := self.client.get_shell_msg(timeout=PATIENCE_SECONDS))["parent_header"].get(
            "msg_id"
        ) != request:
            pass
        return Shown(reply["content"], messages)


class Shown:
    """What a cell has shown.

    Attributes:
        reply: the content of the kernel's reply.
        text: all that was written to standard output and error.
        outputs: the MIME bundles that were displayed, results included.
        error: the lines of the traceback, without colours.
    """

    def __init__(self, reply: Any, messages: list[Any]) -> None:
        contents = [(message["msg_type"], message["content"]) for message in messages]
        self.reply = reply
        self.kinds = [kind for kind, _ in contents]
        self.text = "".join(content["text"] for kind, content in contents if kind == "stream")
        self.outputs = [
            content["data"] for kind, content in contents if kind in ("display_data", "execute_result")
        ]
        self.error = re.sub(
            r"\x1b\[[0-9;]*m",
            "",
            "\n".join(line for kind, content in contents if kind == "error" for line in content["traceback"]),
        ).splitlines()


@contextmanager
def running_kernel(*cells: str) -> Iterator[Kernel]:
    """Run a kernel in which these cells have been run."""
    import jupyter_client

    manager, client = jupyter_client.manager.start_new_kernel(env=environment())
    try:
        kernel = Kernel(manager, client)
        for cell in cells:
            shown = kernel.run(cell)
            assert shown.reply["status"] == "ok", (shown.text, shown.error)
        yield kernel
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
