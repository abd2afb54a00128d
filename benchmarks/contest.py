"""A contest: a crew runs tasks against all contenders in turns, round after round, and rows of figures come out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.crew import Crew, Limit, Slice
from benchmarks.field import OURS, Contender
from benchmarks.results import Row
from benchmarks.rounds import comparison, rotated
from benchmarks.session import Session
from benchmarks.workloads import StreamFactory

_WARM_UP_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Task:
    """One thing that all contenders do.

    Attributes:
        group: where it is in the results: there is a table for each group and transport.
        operation: its name there.
        factory: makes the stream.
        limit: of a slice.
        before: makes a stream that is run, untimed, before each slice.
    """

    group: str
    operation: str
    factory: StreamFactory
    limit: Limit
    before: StreamFactory | None = None

    @property
    def name(self) -> str:
        """As the crew knows it."""
        return f"{self.group} {self.operation}"


@dataclass(frozen=True, slots=True)
class Contest:
    """Who does what how often.

    Attributes:
        case: its name in the results.
        contenders: of all transports; those of one are compared.
        tasks: what to measure; in each round every contender does each.
        rounds: how many, with each crew.
        processes, threads: of a crew.
        crews: one after the other. Where the kernel puts two processes that talk to each other can stay as it is for
            as long as they live, so a single client process is not enough.
        fillings: streams that put in what is read.
    """

    case: str
    contenders: Sequence[Contender]
    tasks: Sequence[Task]
    rounds: int
    processes: int = 1
    threads: int = 1
    crews: int = 1
    fillings: Sequence[StreamFactory] = ()
    ours: str = OURS

    def rows(self, session: Session) -> list[Row]:
        """Do it."""
        slices: dict[tuple[Task, Contender], list[Slice]] = defaultdict(list)
        for number in range(self.crews):
            session.progress(f"{self.case}: starting clients")
            with Crew(self.contenders, processes=self.processes, threads=self.threads) as crew:
                self._prepare(crew)
                for round_number in range(self.rounds):
                    of_all = f"{number * self.rounds + round_number + 1} of {self.crews * self.rounds}"
                    for task in self.tasks:
                        session.progress(f"{self.case}: round {of_all}, {task.name}")
                        for contender in rotated(self.contenders, round_number):
                            slices[task, contender].append(_turn(crew, contender, task, task.limit))
        return [row for task in self.tasks for row in self._compared(task, slices)]

    def _prepare(self, crew: Crew) -> None:
        for filling in self.fillings:
            crew.fill(filling)
        for task in self.tasks:
            crew.prepare(task.name, task.factory)
            if task.before is not None:
                crew.prepare(f"before {task.name}", task.before)
        for task in self.tasks:
            warm_up = Limit(task.limit.calls, task.limit.seconds and _WARM_UP_SECONDS)
            for contender in self.contenders:
                _turn(crew, contender, task, warm_up)

    def _compared(self, task: Task, slices: dict[tuple[Task, Contender], list[Slice]]) -> list[Row]:
        rows = []
        for transport in dict.fromkeys(contender.transport for contender in self.contenders):
            group = {
                contender.name: slices[task, contender]
                for contender in self.contenders
                if contender.transport == transport
            }
            table = f"{task.group}, {transport}"
            for name, figures in comparison(self.ours, group).items():
                rows.append(Row(self.case, table, task.operation, name, figures))
        return rows


def _turn(crew: Crew, contender: Contender, task: Task, limit: Limit) -> Slice:
    if task.before is not None:
        crew.run_untimed(contender, f"before {task.name}")
    return crew.run(contender, task.name, limit)
