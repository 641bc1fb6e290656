"""One thread at a time."""

from __future__ import annotations

import threading

from rt_mmdf.runtime.turns import Turns


def test_the_others_wait_until_the_first_has_left() -> None:
    turns, near, inside = Turns(), threading.Event(), threading.Event()

    def enter() -> None:
        near.set()
        with turns:
            inside.set()

    other = threading.Thread(target=enter)
    with turns:
        other.start()
        assert near.wait(10)
        assert not inside.wait(0.1)
    assert inside.wait(10)
    other.join(10)
    with turns:  # and it is free again
        assert not other.is_alive()
