"""The one voice in which the project speaks to a person: lines, progress bars and refusals."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

terminal = Console(highlight=False, soft_wrap=True)
errors = Console(stderr=True, highlight=False, soft_wrap=True)


class Refusal(Exception):
    """One sentence to a person: what is wrong and what to write instead. Shown without a traceback; exit code 2."""


# What lines begin with, so that those of processes beside each other can be told apart.
_speaker = ""


def speak_as(speaker: str) -> None:
    """Let this process begin its lines with `speaker`."""
    global _speaker
    _speaker = speaker


def say(line: str) -> None:
    """Print one plain line."""
    terminal.print(escape(_speaker + line))
    sys.stdout.flush()


def warn(line: str) -> None:
    """Print one line that must not be overlooked, on standard error."""
    errors.print(escape(_speaker + line), style="bold yellow")


def complain(line: str) -> None:
    """Print why the work ends here, on standard error."""
    errors.print(escape(_speaker + line), style="bold red")


@contextmanager
def progress(
    what: str, total: float | None, unit_of_bytes: bool = False, transient: bool = False, console: Console = terminal
) -> Iterator[Callable[[float], None]]:
    """Show how far `what` is, with the time still to go; on no terminal, a plain line at each tenth.

    Yields a function that takes how much further the work has come.
    """
    if not console.is_terminal:
        yield _PlainProgress(what, total, console)
        return
    count = TextColumn("{task.fields[megabytes]}") if unit_of_bytes else MofNCompleteColumn()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        count,
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        # Results on standard output stay there, also where only standard error is a terminal.
        redirect_stdout=console is terminal,
    )
    with bar:
        task = bar.add_task(escape(what), total=total, megabytes="")

        def advance(amount: float) -> None:
            bar.update(task, advance=amount)
            done = bar.tasks[0].completed
            bar.update(task, megabytes=f"{done / 1e6:,.0f} MB" + (f" of {total / 1e6:,.0f} MB" if total else ""))

        yield advance


class _PlainProgress:
    """A line at each tenth of the way."""

    def __init__(self, what: str, total: float | None, console: Console) -> None:
        self.what, self.total, self.console, self.done, self.tenths = what, total, console, 0.0, 0

    def __call__(self, amount: float) -> None:
        self.done += amount
        tenths = int(10 * self.done / self.total) if self.total else 0
        if tenths > self.tenths:
            self.tenths = tenths
            self.console.print(escape(f"{_speaker}{self.what}: {10 * tenths} %"))
