"""Run notebooks as a user does, in kernels of their own, and look at them in a browser."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.processes import environment

SECONDS = 120


@contextmanager
def own_home() -> Iterator[dict[str, str]]:
    """Yield the environment of a user without a cluster. The detached cluster that is started there is stopped.

    Its directories have short names: the path of a Unix socket has at most 108 bytes.
    """
    home = Path(tempfile.mkdtemp(prefix="pyrocache-"))
    variables = environment(
        TMPDIR=str(home), XDG_CONFIG_HOME=str(home / "config"), XDG_RUNTIME_DIR=str(home), HOME=str(home)
    )
    for name in [name for name in variables if name.startswith("PYROCACHE_")]:
        del variables[name]
    try:
        yield variables
    finally:
        stop = [sys.executable, "-m", "pyrocache", "stop"]
        subprocess.run(stop, env=variables, check=False, timeout=SECONDS, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def run_notebook(path: Path, variables: dict[str, str], directory: Path) -> Any:
    """Return a notebook after its cells have run in a new kernel, in a directory. Raises if one fails."""
    import nbclient
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(
        notebook,
        timeout=SECONDS,
        kernel_name="python3",
        resources={"metadata": {"path": str(directory)}},
        store_widget_state=False,
    )
    client.execute(env=variables)
    return notebook


def text_of(notebook: Any, beginning: str) -> str:
    """Return all text that the cell with this beginning has shown."""
    cell = next(cell for cell in notebook.cells if cell.source.startswith(beginning))
    texts = [output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs]
    return "\n".join(texts)


def data_of(notebook: Any, beginning: str, kind: str) -> list[Any]:
    """Return the data of a MIME type that the cell with this beginning has shown."""
    cell = next(cell for cell in notebook.cells if cell.source.startswith(beginning))
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def as_html(notebook: Any, theme: str) -> str:
    """Return a notebook as a page, with the theme ``light`` or ``dark``, without anything from the network."""
    import nbconvert

    exporter = nbconvert.HTMLExporter(
        theme=theme, mathjax_url="", require_js_url="", jquery_url="", widget_renderer_url=""
    )
    page, _ = exporter.from_notebook_node(notebook)
    return str(page)


def browser() -> str | None:
    """Return the path of a browser that can take pictures; None if there is none."""
    return shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")


def take_picture(page: Path, picture: Path, size: tuple[int, int] = (1000, 1400)) -> None:
    """Write what the browser shows of a page, as a PNG."""
    program = browser()
    assert program is not None
    with tempfile.TemporaryDirectory(prefix="pyrocache-browser-") as profile:
        subprocess.run(
            [
                *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
                *(f"--user-data-dir={profile}", f"--screenshot={picture}"),
                *(f"--window-size={size[0]},{size[1]}", page.as_uri()),
            ],
            check=True,
            capture_output=True,
            timeout=SECONDS,
        )
