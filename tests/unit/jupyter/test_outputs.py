"""What is recorded of a cell's output, and displayed again."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("IPython")

from pyrocache.jupyter.outputs import Recorder, replay


class Publisher:
    def __init__(self) -> None:
        self.shown: list[Any] = []

    def publish(
        self, data: Any, metadata: Any = None, *, transient: Any = None, update: bool = False
    ) -> None:
        self.shown.append((data, metadata, transient, update))

    def clear_output(self, wait: bool = False) -> None:
        print("\033[2K", end="")


class Hook:
    """As in a terminal: it writes the prompt and the text to standard output."""

    def __init__(self) -> None:
        self.shown: list[Any] = []

    def start_displayhook(self) -> None:
        print("start", end="")

    def write_output_prompt(self) -> None:
        print("Out[1]: ", end="")

    def write_format_data(self, format_dict: Any, md_dict: Any = None) -> None:
        self.shown.append((format_dict, md_dict))
        print("text")

    def finish_displayhook(self) -> None:
        print("finish", end="")


def shows(hook: Hook, data: dict[str, Any]) -> None:
    hook.start_displayhook()
    hook.write_output_prompt()
    hook.write_format_data(data, {})
    hook.finish_displayhook()


@pytest.fixture
def shell() -> Any:
    return SimpleNamespace(display_pub=Publisher(), displayhook=Hook())


def use_streams(monkeypatch: pytest.MonkeyPatch) -> tuple[Stream, Stream]:
    """Replace the standard streams, which pytest sets again after the fixtures."""
    out, err = Stream(), Stream()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    return out, err


class Stream(io.StringIO):
    """A stream that takes attributes, as those of IPython and of Python do."""


def texts(recorder: Recorder) -> list[Any]:
    return [output.get("text", output.get("data")) for output in recorder.outputs()]


def test_output_is_shown_and_recorded_in_order_and_replayed(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = use_streams(monkeypatch)
    recorder = Recorder(shell)
    recorder.begin()
    print("a", 1)
    print("b", file=sys.stderr)
    sys.stdout.writelines(["c", "d"])
    shell.display_pub.publish({"image/png": b"\0\1", "text/plain": "p"}, {"width": 1})
    shows(shell.displayhook, {"text/plain": "r"})
    recorder.end()
    print("not recorded")
    assert err.getvalue() == "b\n"
    assert shell.display_pub.shown[0][0]["image/png"] == b"\0\1"
    assert [output["type"] for output in recorder.outputs()] == [*["stream"] * 3, "display", "result"]
    assert texts(recorder)[:3] == ["a 1\n", "b\n", "cd"]
    assert texts(recorder)[3:] == [{"image/png": "AAE=", "text/plain": "p"}, {"text/plain": "r"}]
    out.seek(0)
    out.truncate()
    replay(shell, recorder.outputs())
    assert out.getvalue() == "a 1\ncdstartOut[1]: text\nfinish"
    assert shell.display_pub.shown[1] == ({"image/png": "AAE=", "text/plain": "p"}, {"width": 1}, {}, False)
    assert shell.displayhook.shown[1] == ({"text/plain": "r"}, {})


def test_everything_is_as_before_at_the_end(shell: Any) -> None:
    objects = [sys.stdout, sys.stderr, shell.display_pub, shell.displayhook]
    before = [dict(vars(each)) for each in objects]
    recorder = Recorder(shell)
    recorder.begin()
    assert all("write" in vars(stream) for stream in objects[:2])
    recorder.end()
    assert [dict(vars(each)) for each in objects] == before


def test_what_the_cell_has_wrapped_again_is_left(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = use_streams(monkeypatch)
    recorder = Recorder(shell)
    recorder.begin()
    inner = out.write
    out.write = lambda text: inner(text.upper())  # type: ignore[method-assign]
    print("a")
    recorder.end()
    print("b")
    assert out.getvalue() == "A\nB\n"
    assert texts(recorder) == ["A\n"]


def test_an_update_replaces_and_clearing_removes(shell: Any) -> None:
    publisher, recorder = shell.display_pub, Recorder(shell)
    recorder.begin()
    print("gone")
    publisher.clear_output()
    publisher.publish({"text/plain": "1"}, transient={"display_id": "x"})
    print("kept")
    for number in range(3):
        publisher.publish({"text/plain": str(number)}, transient={"display_id": "x"}, update=True)
    publisher.publish({"text/plain": "other"}, transient={"display_id": "y"}, update=True)
    publisher.clear_output(wait=True)
    recorder.end()
    assert texts(recorder) == [{"text/plain": "2"}, "kept\n", {"text/plain": "other"}]
    assert [output.get("update") for output in recorder.outputs()] == [False, None, True]
    recorder.begin()
    print("after")
    recorder.end()
    assert texts(recorder) == ["after\n"]


def test_widgets_are_left_out_and_what_json_has_not(shell: Any) -> None:
    recorder = Recorder(shell)
    recorder.begin()
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}}
    shell.display_pub.publish({**view, "text/plain": "IntSlider(value=0)"})
    shell.display_pub.publish(view)
    shell.display_pub.publish({"application/json": {"a": [1]}, "application/x": object()})
    recorder.end()
    assert texts(recorder) == [{"text/plain": "IntSlider(value=0)"}, {"application/json": {"a": [1]}}]


def test_what_is_recorded_is_bounded(shell: Any) -> None:
    recorder = Recorder(shell, most=10)
    recorder.begin()
    print("12345", end="")
    shell.display_pub.publish({"text/plain": "123456"})
    print("6", end="")
    recorder.end()
    assert recorder.cut
    assert texts(recorder) == ["12345"]
    recorder = Recorder(shell, most=10)
    recorder.begin()
    print("0123456789abc")
    assert recorder.cut
    shell.display_pub.clear_output()
    print("short")
    recorder.end()
    assert not recorder.cut
    assert texts(recorder) == ["short\n"]


class Fixed:
    """A stream that takes no attributes."""

    __slots__ = ("shown",)

    def __init__(self) -> None:
        self.shown = ""

    def write(self, text: str) -> None:
        self.shown += text


def test_a_stream_that_takes_no_attributes_is_not_recorded(
    shell: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Fixed()
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", None)
    recorder = Recorder(shell)
    recorder.begin()
    print("a")
    recorder.end()
    assert (stream.shown, recorder.outputs()) == ("a\n", [])
