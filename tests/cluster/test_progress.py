"""Progress bars where a person looks: in a prompt at a terminal and in a notebook. Not in scripts, nor in pipes."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from contextlib import suppress
from typing import Any

import pytest

from pyrocache import LocalCluster
from tests.support.processes import environment

pytest.importorskip("tqdm")

SETUP = """
from pyrocache import PyroCacheClient
from pyrocache.client.features import progress
progress.SHOWN_AFTER_SECONDS = 0.0
cache = PyroCacheClient({nameserver!r}).namespace("progress")
"""
USE = "_ = cache.set_many(dict.fromkeys(range(2000))), cache.get_many(range(2000)), list(cache.items())"


@pytest.fixture
def setup(shared_cluster: LocalCluster) -> str:
    return SETUP.format(nameserver=shared_cluster.nameserver)


@pytest.mark.parametrize("options", [(), ("-i",)], ids=["a script", "a prompt without a terminal"])
def test_pipes_show_no_bar(setup: str, options: tuple[str, ...]) -> None:
    lines = f"{setup}\n{USE}\nprint(len(_[1]))\n"
    arguments = [sys.executable, *options, *(() if options else ("-c", lines))]
    told = subprocess.run(
        arguments,
        input=lines if options else "",
        capture_output=True,
        text=True,
        timeout=60,
        env=environment(),
        check=True,
    )
    assert told.stdout == "2000\n"
    assert "%" not in told.stderr
    assert "keys" not in told.stderr


def at_a_terminal(arguments: list[str], typed: str) -> str:
    """Run Python at a terminal, type, and return what it showed."""
    controller, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (40, 100))
    shown = b""
    try:
        env = environment(PYTHON_BASIC_REPL="1", TERM="dumb")
        process = subprocess.Popen(
            [sys.executable, *arguments], stdin=terminal, stdout=terminal, stderr=terminal, env=env
        )
        os.close(terminal)
        try:
            os.write(controller, typed.encode())
            with suppress(OSError):  # the terminal has no more users
                while piece := os.read(controller, 4096):
                    shown += piece
            assert process.wait(30) == 0
        finally:
            process.kill()
            process.wait()
    finally:
        os.close(controller)
    return shown.decode()


def test_a_prompt_at_a_terminal_shows_bars(setup: str) -> None:
    shown = at_a_terminal(["-i", "-c", setup], f"{USE}\nprint(len(_[1]))\nexit()\n")
    for bar in ("set_many: 100%|", "get_many: 100%|", "items: 2000 keys ["):
        assert bar in shown
    assert "2000/2000" in shown
    assert "\r\n2000\r\n" in shown


def test_a_script_at_a_terminal_shows_none(setup: str) -> None:
    assert at_a_terminal(["-c", f"{setup}\n{USE}\nprint(len(_[1]))"], "") == "2000\r\n"


@pytest.mark.parametrize("widgets", [pytest.param(True, marks=pytest.mark.full), False])
def test_a_notebook_shows_bars(setup: str, widgets: bool) -> None:
    jupyter_client = pytest.importorskip("jupyter_client")
    pytest.importorskip("ipykernel")
    if widgets:
        pytest.importorskip("ipywidgets")
    else:
        setup = f"import sys\nsys.modules['ipywidgets'] = None\n{setup}"
    manager, client = jupyter_client.manager.start_new_kernel(env=environment())
    messages: list[Any] = []
    try:
        client.execute_interactive(setup, timeout=60)
        reply = client.execute_interactive(USE, output_hook=messages.append, timeout=60)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert reply["content"]["status"] == "ok"
    shown = [message["content"]["data"] for message in messages if message["msg_type"] == "display_data"]
    text = "".join(message["content"]["text"] for message in messages if message["msg_type"] == "stream")
    if widgets:
        assert ["application/vnd.jupyter.widget-view+json" in data for data in shown] == [True] * 3
        assert text == ""
    else:
        assert "get_many: 100%|" in text
        assert "Warning" not in text, "tqdm warns of the missing package when it is imported"
