"""`Throttle`: how often the same warning may be logged.

Decides only; the caller logs. The clock is injected.

Thread safety: thread-safe, and usable in a child process after a fork.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

from pyrocache.runtime import at_fork

_MOST_SUBJECTS = 1024


class Throttle:
    """Lets one event of each subject through per interval, and counts the others.

    Args:
        seconds: the interval; infinity lets only the first event of a subject through.
        clock: monotonic seconds.
    """

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._lock = threading.Lock()  # guards: _subjects
        # The time of the last event let through, and the number of events since; the least recent subject first.
        self._subjects: OrderedDict[Hashable, tuple[float, int]] = OrderedDict()
        at_fork.in_child(self._reset_after_fork)

    def admit(self, subject: Hashable) -> int:
        """Return 0 if this event is not to be logged, else the number of events since the last one that was, with it.

        The oldest subject is forgotten when there are more than 1,024.
        """
        now = self._clock()
        with self._lock:
            since, held_back = self._subjects.get(subject, (float("-inf"), 0))
            if now - since < self._seconds:
                self._subjects[subject] = since, held_back + 1
                return 0
            self._subjects[subject] = now, 0
            self._subjects.move_to_end(subject)
            if len(self._subjects) > _MOST_SUBJECTS:
                self._subjects.popitem(last=False)
            return held_back + 1

    def _reset_after_fork(self) -> None:
        self._lock = threading.Lock()  # another thread of the parent may have held it
