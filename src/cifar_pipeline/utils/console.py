"""The one voice in which the project speaks to a person: lines, progress and refusals."""

import atexit
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.control import Control
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.segment import Segment
from rich.text import Text

from cifar_pipeline.utils.text import escape_control, redact_and_escape

# In a pipe or a file nothing needs to fit a screen, and a name folded to 80 columns can't be searched for.
NON_TTY_WIDTH = 200
# How long something may take before there is a word about it, and the time between two words.
STATUS_DELAY = 2.0


class _EscapingConsole(Console):
    """A console on which text from outside is text: the only escape sequences are rich's own."""

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else Segment(escape_control(segment.text, keep="\n\t"), segment.style)
            for segment in buffer
        )


class _Console(_EscapingConsole):
    """A console whose lines end what was shown for want of one."""

    def print(self, *objects: Any, **options: Any) -> None:
        # A bar draws itself anew with a control and nothing else.
        if not all(isinstance(part, Control) for part in objects):
            clear_status()
        super().print(*objects, **options)


_width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else NON_TTY_WIDTH
stdout_console = _Console(highlight=False, soft_wrap=True, width=_width)
stderr_console = _Console(stderr=True, highlight=False, soft_wrap=True)


# What lines begin with, so that those of processes beside each other can be told apart.
_prefix = ""


def set_log_prefix(speaker: str) -> None:
    """Let this process begin its lines with `speaker`."""
    global _prefix
    _prefix = speaker


_muted = False
# How long a silent process waits with its complaint for the one that speaks to end it.
NONZERO_RANK_ERROR_DELAY = 4.0


def mute(speaker: str) -> None:
    """Let this process say nothing, because another one speaks for it; only if it ends badly, as `speaker`."""
    global _muted
    _muted = True
    clear_status()
    set_log_prefix(speaker)


def is_muted() -> bool:
    """Whether another process speaks for this one."""
    return _muted


def info(line: str) -> None:
    """Print one plain line."""
    if _muted:
        return
    stdout_console.print(_prefixed(line))
    sys.stdout.flush()


def warning(line: str) -> None:
    """Print one line that must not be overlooked, on standard error."""
    if _muted:
        return
    stderr_console.print(_prefixed(line), style="bold yellow")


def log_error(line: str) -> None:
    """Print why the work ends here, on standard error. A silent process does so if nobody says it for it."""
    if _muted:
        time.sleep(NONZERO_RANK_ERROR_DELAY)
    stderr_console.print(_prefixed(line), style="bold red")


def _prefixed(line: str) -> str:
    """Escape a line for rich's markup and for terminals, without secrets, after this process's name."""
    # Here already, because rich drops some control characters without a word.
    return escape(redact_and_escape(_prefix + line))


class _DelayedSpinner:
    """What is being done while nothing is said: shown with its seconds on a terminal, elsewhere in one line."""

    def __init__(self, what: str) -> None:
        self.what, self.lock, self.over = what, threading.Lock(), False
        self.shown: Progress | None = None
        self.timer = threading.Timer(STATUS_DELAY, self._show)
        self.timer.daemon = True
        self.timer.start()

    def _show(self) -> None:
        # Standard output is for results. Its own console, since the others' lines end this.
        console = _EscapingConsole(stderr=True, highlight=False, soft_wrap=True)
        with self.lock:
            if self.over:
                return
            if not console.is_terminal or _bars:
                console.print(_prefixed(f"{self.what} ..."))
                return
            columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
            self.shown = Progress(
                *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self.shown.add_task(_prefixed(self.what))
            self.shown.tasks[0].start_time = self.shown.get_time() - STATUS_DELAY
            self.shown.start()

    def end(self) -> None:
        self.timer.cancel()
        with self.lock:
            self.over = True
            if self.shown:
                self.shown.stop()


_spinner: _DelayedSpinner | None = None
_bars = 0  # bars that are on the terminal at this moment


def status(what: str) -> None:
    """Say what is being done from now on, if no other line comes within two seconds."""
    global _spinner
    clear_status()
    if not _muted:
        _spinner = _DelayedSpinner(what)


@atexit.register
def clear_status() -> None:
    """Say no more what is being done, because it is done."""
    global _spinner
    waiting, _spinner = _spinner, None
    if waiting:
        waiting.end()


@contextmanager
def progress_bar(
    what: str,
    total: float | None,
    unit_of_bytes: bool = False,
    transient: bool = False,
    console: Console = stdout_console,
    every: float | None = None,
    begun: float = 0,
) -> Iterator[Callable[[float], None]]:
    """Show how far `what` is, how fast it goes, and the time still to go.

    On no terminal these are plain lines: at a tenth of the way, `every` so many seconds at most (`SECONDS`); what is
    done sooner says nothing. `begun` is how far it was before.

    Yields a function that takes how much further the work has come.
    """
    clear_status()
    if _muted:
        yield lambda amount: None
        return
    if not console.is_terminal:
        yield _TextProgress(what, total, unit_of_bytes, console, STATUS_DELAY if every is None else every, begun)
        return
    how_far: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if unit_of_bytes else [MofNCompleteColumn(), _RateColumn()]
    )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(max(10, min(40, console.width - len(what) - 40))),
        *how_far,
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        # Results on standard output stay there, also where only standard error is a terminal.
        redirect_stdout=console is stdout_console,
    )
    global _bars
    with bar:
        task = bar.add_task(escape(redact_and_escape(what)), total=total, completed=int(begun))
        _bars += 1
        try:
            yield lambda amount: bar.update(task, advance=amount)
        finally:
            _bars -= 1


class _RateColumn(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


class _TextProgress:
    """A line at a tenth of the way, if it takes long."""

    def __init__(
        self, what: str, total: float | None, of_bytes: bool, console: Console, every: float, begun: float
    ) -> None:
        self.what, self.total, self.of_bytes, self.console, self.every = what, total, of_bytes, console, every
        self.done, self.begun, self.tenths = begun, begun, 0
        self.start = self.said = time.monotonic()
        self.is_going = False

    def __call__(self, amount: float) -> None:
        self.done += amount
        now, tenths = time.monotonic(), int(10 * self.done / self.total) if self.total else self.tenths + 1
        if tenths > self.tenths and now - self.said >= self.every:
            self.tenths, self.said = tenths, now
            self.console.print(_prefixed(f"{self.what}: {', '.join(self._words(now - self.start))}"))
        if not self.is_going:
            # What comes first may take longer than all that follows: something is compiled, a host is found.
            self.is_going, self.start, self.begun = True, now, self.done

    def _words(self, seconds: float) -> Iterator[str]:
        speed = (self.done - self.begun) / seconds if seconds else 0.0
        size, unit = (1e6, " MB") if self.of_bytes else (1, "")
        yield f"{100 * self.done / self.total:.0f} %" if self.total else f"{self.done / size:,.0f}{unit}"
        if speed:
            yield f"{speed / size:,.1f}{unit}/s" if self.of_bytes or speed < 10 else f"{speed:,.0f}/s"
        if speed and self.total and self.done < self.total:
            yield f"{format_duration((self.total - self.done) / speed)} left"


def format_duration(seconds: float) -> str:
    """Write a time as a person would: `0.4 s`, `48 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
