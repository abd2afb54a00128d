"""The command line: which cases to run, what to print, what to keep."""

from __future__ import annotations

import datetime
import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from benchmarks.cases import CASES
from benchmarks.lab.command import replay_command
from benchmarks.machine import machine, versions
from benchmarks.report import DOCUMENT, markdown
from benchmarks.results import Results, newest
from benchmarks.scale.command import scale_command
from benchmarks.servers import own_secret
from benchmarks.session import Session
from benchmarks.tables import for_terminal, tables
from benchmarks.targets import summary
from benchmarks.web.command import web_command

app = typer.Typer(
    help="Measure pyrocache beside redis-py, pymemcache, stock Pyro5 and multiprocessing's Manager.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help=f"Run this case; may be repeated. Cases: {', '.join(CASES)}."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="See in less than a minute whether all works; figures are rough.")
    ] = False,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results there, too.")] = None,
    save: Annotated[
        bool | None,
        typer.Option(
            help="Keep the results in benchmarks/results and write docs/performance.md from them. "
            "By default after a run of all cases that is not quick.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run the benchmarks, all of them or those that --only names."""
    if context.invoked_subcommand is not None:
        return
    unknown = [name for name in only or () if name not in CASES]
    if unknown:
        raise typer.BadParameter(f"there is no case {unknown[0]!r}; there are {', '.join(CASES)}.")
    if json is not None:
        try:
            json.touch()  # now, and not after all the work
        except OSError as error:
            raise typer.BadParameter(f"{json} cannot be written ({error.strerror}).") from error
    signal.signal(signal.SIGTERM, _leave)
    now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    results = Results(now, quick, machine(), versions())
    with own_secret():
        complete = _run_cases(results, only or list(CASES))
    if json is not None:
        json.write_text(results.to_json())
    if save or (save is None and not only and not quick and complete):
        path = results.save()
        DOCUMENT.write_text(markdown(results))
        _console().print(f"Kept in {path}; {DOCUMENT} is written from it.")
    if not complete:
        raise typer.Exit(1)


@app.command()
def report(
    file: Annotated[
        Path | None,
        typer.Argument(help="Results; by default those that were saved last.", show_default=False),
    ] = None,
) -> None:
    """Write docs/performance.md from results."""
    file = file or newest()
    if file is None:
        raise typer.BadParameter("there are no results; run the benchmarks first.")
    DOCUMENT.write_text(markdown(Results.from_json(file.read_text())))
    _console().print(f"{DOCUMENT} is written from {file}.")


app.command("replay")(replay_command)
app.command("scale")(scale_command)
app.command("web")(web_command)


def _run_cases(results: Results, names: list[str]) -> bool:
    console = _console()
    complete = True
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    # It draws when it is told to: a thread that draws would take CPU time from what is measured.
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as progress:
        task = progress.add_task("")

        def show(doing: str) -> None:
            progress.update(task, description=doing, refresh=True)

        session = Session(results.quick, show, results.notes)
        for name in CASES:
            if name not in names:
                continue
            known = len(results.notes)
            try:
                rows = CASES[name].measure(session)
            except Exception as error:
                traceback.print_exc()
                complete = False
                session.note(f"{name} failed: {error}")
                rows = []
            results.rows += rows
            for note in results.notes[known:]:
                console.print(note, markup=False)
            for shown in tables(rows):
                console.print(for_terminal(shown))
    targets = summary(results, names)
    if targets.lines:
        console.print(for_terminal(targets, texts=4))
    return complete


def _console() -> Console:
    """A narrow terminal folds lines; nothing that is not one has a width."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def _leave(number: int, frame: object) -> NoReturn:
    sys.exit(128 + number)
