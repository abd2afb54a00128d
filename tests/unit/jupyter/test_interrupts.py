"""Interrupts are put off, and none is lost."""

from __future__ import annotations

import signal
import threading

import pytest

pytest.importorskip("IPython")  # the package of what is tested imports it

from pyrocache.jupyter.interrupts import Interrupts


def test_an_interrupt_is_held_until_it_is_released() -> None:
    interrupts, steps = Interrupts(), []

    def use() -> None:
        try:
            interrupts.start()
            signal.raise_signal(signal.SIGINT)
            steps.append("held")
            interrupts.release()
            steps.append("never")
        finally:
            interrupts.held = True
            signal.raise_signal(signal.SIGINT)
            steps.append("held again")
            interrupts.stop()

    with pytest.raises(KeyboardInterrupt):
        use()
    assert steps == ["held", "held again"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_between_is_raised_at_once_and_only_once() -> None:
    interrupts = Interrupts()

    def use() -> None:
        try:
            interrupts.start()
            interrupts.release()
            signal.raise_signal(signal.SIGINT)
            pytest.fail("not interrupted")
        finally:
            interrupts.held = True
            interrupts.stop()

    with pytest.raises(KeyboardInterrupt):
        use()
    interrupts.stop()


def test_a_handler_that_the_code_has_set_stays() -> None:
    interrupts = Interrupts()
    interrupts.start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.stop()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_nothing_is_done_in_another_thread_or_without_a_handler() -> None:
    def use() -> None:
        interrupts = Interrupts()
        interrupts.start()
        done.append(signal.getsignal(signal.SIGINT))
        interrupts.release()
        interrupts.stop()

    done: list[object] = []
    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        use()
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    assert done == [signal.default_int_handler, signal.SIG_IGN]
