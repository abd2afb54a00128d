"""One run: a cluster, its load, some faults, and what the checker finds.

Thread safety: not thread-safe. Each fault of a run has a thread of its own.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.checker import Violation, check
from tests.chaos.faults import FAULTS, Fault
from tests.chaos.history import Call, read_history
from tests.chaos.scene import TIMEOUT_SECONDS, Scene

CLIENTS = {"both": 2 / 3, "asyncio": 1.0, "blocking": 0.0}
"""Which part of the load's processes uses the asyncio client."""
_PROCESSES = 3
_PROGRESS_SECONDS = 5.0
_WATCH_SECONDS = 0.2
_TAIL_SECONDS = 1.0  # late effects show in it
_SHOWN = 8  # violations in full
_NEARBY_SECONDS = 1.0
_MOST_LINES = 24


@dataclass(frozen=True)
class Outcome:
    """What a run has found.

    Attributes:
        faults: their names.
        calls: the whole history.
        events: what was done, and when.
        violations: by time.
        problems: why the run itself is not valid.
        began_at: monotonic seconds.
    """

    faults: Sequence[str]
    calls: Sequence[Call]
    events: Sequence[tuple[float, str]]
    violations: Sequence[Violation]
    problems: Sequence[str]
    began_at: float

    @property
    def good(self) -> bool:
        """Return whether nothing was found."""
        return not self.violations and not self.problems

    def summary(self) -> str:
        """Return one line."""
        failed = sum(call.outcome == "maybe" for call in self.calls)
        errors = Counter(call.error for call in self.calls if call.error)
        raised = ", ".join(f"{count} {error}" for error, count in errors.most_common())
        text = f"{'+'.join(self.faults)}: {len(self.calls)} calls, {failed} raised{f' ({raised})' if raised else ''}, "
        kinds = Counter(violation.kind for violation in self.violations)
        found = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common())
        if self.violations:
            found += f"; the first after {self.violations[0].at - self.began_at:.1f} s"
        return text + f"{len(self.violations)} violations" + (f" ({found})" if found else "")

    def report(self) -> str:
        """Return the summary, and the first violations with the history around them."""
        texts = [self.summary(), *self.problems]
        texts += [self._describe(violation) for violation in self.violations[:_SHOWN]]
        if len(self.violations) > _SHOWN:
            texts.append(f"... and {len(self.violations) - _SHOWN} more.")
        return "\n\n".join(texts)

    def _describe(self, violation: Violation) -> str:
        start = min(call.start for call in violation.calls) - _NEARBY_SECONDS / 4
        end = violation.at + _NEARBY_SECONDS
        near = [
            call
            for call in self.calls
            if call.key == violation.key and start <= call.end and call.start <= end
        ]
        while len(near) > _MOST_LINES:  # those that prove it, and what is closest to them
            spare = [call for call in near if call not in violation.calls]
            near.remove(max(spare, key=lambda call: min(abs(call.end - p.end) for p in violation.calls)))
        lines = [
            (call.start, f"{'*' if call in violation.calls else ' '} {self._line(call)}")
            for call in sorted({*near, *violation.calls}, key=lambda call: call.start)
        ]
        lines += [
            (at, f"# {at - self.began_at:8.4f}  {text}") for at, text in self.events if start <= at <= end
        ]
        title = f"{violation.kind}: {violation.key!r}, and {violation.more} calls more"
        return "\n".join([title, *(line for _, line in sorted(lines))])

    def _line(self, call: Call) -> str:
        times = f"{call.start - self.began_at:8.4f} - {call.end - self.began_at:8.4f}"
        value = call.value if len(str(call.value)) < 40 else f"...{str(call.value)[-30:]}"
        replaced = f" for {call.replaced}" if call.replaced else ""
        return f"{times}  {call.client:8} {call.kind} {value}{replaced} {call.outcome} {call.error}"


def run(names: Sequence[str], seconds: float, seed: int, clients: str = "both") -> Outcome:
    """Run these faults together under load for so long. ``clients`` is one of `CLIENTS`."""
    faults = [FAULTS[name] for name in names]
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        scene = Scene(f"{seed} {names}", Path(directory))
        try:
            began_at = time.monotonic()
            problems = _harm(scene, names, faults, seconds, CLIENTS[clients])
            calls = read_history(scene.directory)
        finally:
            scene.close()
    violations = check(calls, scene.losses, TIMEOUT_SECONDS)
    problems += [f"{name} has ended by itself." for name in scene.ended]
    return Outcome(names, calls, scene.events, violations, problems, began_at)


def _harm(
    scene: Scene, names: Sequence[str], faults: Sequence[Fault], seconds: float, asyncio: float
) -> list[str]:
    """Return what went wrong with the run itself."""
    problems: list[str] = []

    def repeat(fault: Fault) -> None:
        try:
            while not scene.over:
                fault.once(scene)
        except Exception:
            problems.append(traceback.format_exc())
            scene.end_at = 0.0

    scene.start_load(
        _PROCESSES,
        asyncio=asyncio,
        proxied=any(fault.proxied for fault in faults),
        forks=any(fault.forks for fault in faults),
        renew_seconds=max(fault.renew_seconds for fault in faults),
    )
    scene.end_at = time.monotonic() + max(seconds - _TAIL_SECONDS, 0.0)
    threads = [threading.Thread(target=repeat, args=(fault,), daemon=True) for fault in faults]
    for thread in threads:
        thread.start()
    told_at = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(_WATCH_SECONDS)
        scene.watch()
        if time.monotonic() - told_at >= _PROGRESS_SECONDS:
            told_at = time.monotonic()
            _tell(scene, names)
    scene.cutter.parts = ()
    time.sleep(_TAIL_SECONDS)
    scene.watch()
    try:
        scene.stop_load()
    except RuntimeError as error:
        problems.append(str(error))
    return problems


def _tell(scene: Scene, names: Sequence[str]) -> None:
    left = max(0.0, scene.end_at - time.monotonic())
    size = sum(path.stat().st_size for path in scene.directory.iterdir()) / 2**20
    text = f"{left:.0f} s left, {len(scene.events)} events, {size:.1f} MiB of history"
    print(f"  {'+'.join(names)}: {text}", file=sys.stderr, flush=True)
