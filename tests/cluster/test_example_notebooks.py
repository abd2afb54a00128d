"""The notebooks in `examples` run, show what they say, and look as they should in a browser, in both themes."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import notebooks

for package in ("nbclient", "nbconvert", "ipykernel", "IPython", "matplotlib", "pandas", "ipywidgets"):
    pytest.importorskip(package)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "notebooks"

pytestmark = [
    pytest.mark.full,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not EXAMPLES.exists(), reason="the tests run without the project around them"),
]


@pytest.fixture(scope="module")
def user() -> Iterator[dict[str, str]]:
    with notebooks.own_home() as variables:
        yield variables


def run(name: str, user: dict[str, str], directory: Path) -> Any:
    return notebooks.run_notebook(EXAMPLES / f"{name}.ipynb", user, directory)


@pytest.fixture(scope="module")
def tour(user: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run("first_tour", user, tmp_path_factory.mktemp("tour"))


def test_the_first_tour(tour: Any) -> None:
    assert "Started a cluster" in notebooks.text_of(tour, "import pyrocache")
    (card,) = notebooks.data_of(tour, "import pyrocache", "text/html")
    assert "cache.node.3" in card
    assert "(42, {'name': 'Alice', 'age': 30}, None)" in notebooks.text_of(
        tour, 'tour = cache.namespace("first'
    )
    assert "the largest eigenvalue is" in notebooks.text_of(tour, "%%cached tour-eigenvalues")
    assert len(notebooks.data_of(tour, "cache.stats().plot()", "image/png")) == 1
    assert (
        len(notebooks.data_of(tour, "view = cache.watch()", "application/vnd.jupyter.widget-view+json")) == 1
    )


def test_a_pipeline_that_two_notebooks_share(user: dict[str, str], tmp_path: Path) -> None:
    first = run("pipeline", user, tmp_path)
    second = run("pipeline", user, tmp_path)
    steps = ("%%cached readings", "%%cached features", "%%cached weeks-figure")
    for step in steps:
        assert "Ran " in notebooks.text_of(first, step)
        assert "Restored " in notebooks.text_of(second, step)
    (figure,) = notebooks.data_of(first, steps[2], "image/png")
    assert notebooks.data_of(second, steps[2], "image/png") == [figure]
    for beginning in ("features.loc[0", "@cache.memoize"):
        assert notebooks.data_of(first, beginning, "text/html") == notebooks.data_of(
            second, beginning, "text/html"
        )


def test_many_workers(user: dict[str, str], tmp_path: Path) -> None:
    done = run("workers", user, tmp_path)
    shown = notebooks.text_of(done, "needed = ")
    documents, processes = map(int, re.findall(r"(\d+) documents, loaded by (\d+) processes", shown)[0])
    assert documents > 30
    assert processes > 1
    assert (
        notebooks.text_of(done, "with ProcessPoolExecutor(8, mp_context=multiprocessing.get_context") == "100"
    )


@pytest.mark.skipif(notebooks.browser() is None, reason="no browser to take pictures with")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_tour_in_a_browser(tour: Any, theme: str, tmp_path: Path) -> None:
    page, picture = tmp_path / "tour.html", tmp_path / f"tour-{theme}.png"
    page.write_text(notebooks.as_html(tour, theme), encoding="utf-8")
    notebooks.take_picture(page, picture, (1000, 4200))
    colours = colours_of(picture)
    assert len(colours) > 20, "the page is empty"
    background = max(colours, key=colours.__getitem__)
    assert (sum(background) > 3 * 200) == (theme == "light")
    keep = os.environ.get("TEST_PICTURES")  # to look at them
    if keep:
        picture.rename(Path(keep) / picture.name)


def colours_of(picture: Path) -> dict[tuple[int, int, int], int]:
    """Return how often each colour occurs, in every 97th pixel."""
    from matplotlib import image

    pixels = (image.imread(picture)[..., :3].reshape(-1, 3)[::97] * 255).astype(int)
    colours: dict[tuple[int, int, int], int] = {}
    for red, green, blue in pixels.tolist():
        colours[red, green, blue] = colours.get((red, green, blue), 0) + 1
    return colours
