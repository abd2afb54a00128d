"""Draw the pictures of the README: ``python docs/pictures.py [DIRECTORY]``, by default ``docs/images``.

Both show a real cluster under load: the card of a client in a notebook, and ``pyrocache top --keys``. They are SVG
files that load nothing, with text as text. That of the notebook follows the reader's theme.
"""

from __future__ import annotations

import html
import io
import random
import re
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

from pyrocache import LocalCluster, PyroCacheClient
from pyrocache.cli.top import Sampler
from pyrocache.cli.top_view import Order, screen

SECONDS = 6.0  # of load before the pictures, so that rates are steady
COLUMNS, LINES = 100, 20

STYLE = """
  .page { color-scheme: light dark; color: #1f2328; background: #ffffff; font: 13px system-ui, sans-serif; }
  .code { background: #f4f5f7; border: 1px solid #d5d9de; padding: 6px 10px; margin: 0 0 8px; }
  .code, .prompt { font: 13px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
  .prompt { color: #5a7d9a; width: 42px; flex: none; padding-top: 7px; }
  .row { display: flex; gap: 8px; }
  @media (prefers-color-scheme: dark) {
    .page { color: #e6edf3; background: #14171c; }
    .code { background: #1f242b; border-color: #39414b; }
  }
"""

CELL = """import pyrocache
cache = pyrocache.connect(max_memory="8MiB")
cache"""


def notebook(card: str, width: int, height: int) -> str:
    """Return the picture of a notebook cell and the card below it."""
    code = html.escape(CELL).replace("\n", "<br/>")
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">
<style>{STYLE}</style>
<foreignObject width="{width}" height="{height}">
<div xmlns="http://www.w3.org/1999/xhtml" class="page" style="height:{height - 24}px;padding:12px">
<div class="row"><div class="prompt">[1]:</div><div class="code" style="flex:1">{code}</div></div>
<div class="row"><div class="prompt"></div><div>{card}</div></div>
</div>
</foreignObject>
</svg>
"""


def terminal(lines: list[Text]) -> str:
    """Return the picture of a terminal."""
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in lines:
        console.print(line, no_wrap=True, overflow="crop")
    picture = console.export_svg(title="pyrocache top --keys", unique_id="top")
    # Without the fonts that rich would load.
    picture = re.sub(r"@font-face\s*{[^}]*}", "", picture)
    return picture.replace("Fira Code", "ui-monospace, SFMono-Regular, Menlo, Consolas")


def load(cache: PyroCacheClient, stop: threading.Event) -> None:
    """Use the cache as an application does: some keys much more than others."""
    chance = random.Random(7)
    while not stop.is_set():
        number = int(chance.paretovariate(0.7)) % 20_000
        key = ("page", number)
        if cache.get(key) is None and chance.random() < 0.7:
            cache.set(key, {"number": number, "body": "x" * chance.randrange(2_000, 12_000)}, ttl_seconds=600)
        if not number % 7:
            cache.incr("visits")


def main(directory: Path) -> None:
    """Write both pictures."""
    directory.mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    with LocalCluster(nodes=3, max_memory="8MiB") as cluster:
        cache = cluster.client()
        workers = [threading.Thread(target=load, args=(cluster.client(), stop)) for _ in range(2)]
        for worker in workers:
            worker.start()
        try:
            sampler = Sampler(cache, cluster.nameserver, keys=True)
            give_up_at = time.monotonic() + SECONDS
            while time.monotonic() < give_up_at:
                reading = sampler.read()
                time.sleep(1.0)
            card = cache._repr_html_()
        finally:
            stop.set()
            for worker in workers:
                worker.join()
    for name, picture in {
        "notebook": notebook(card, 920, 366),
        "top": terminal(screen(reading, Order(sort="ops"), COLUMNS, LINES)),
    }.items():
        (directory / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "images")
