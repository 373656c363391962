"""Print tables, a delayed status line and progress bars with rich; plain lines where there is no terminal.

Every line is redacted and escaped. `utils/logs.py` prints log records on the same consoles.
"""

import atexit
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
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

from cifar_pipeline.utils.text import escape_control, percent, redact_and_escape

# The logger of this library, whose level is that of the user (`-v`, `-q`, LOG_LEVEL).
PACKAGE = "cifar_pipeline"
# In a pipe or a file nothing needs to fit a screen, and a name wrapped at 80 columns can't be searched for.
NON_TTY_WIDTH = 200
# Seconds before a status or progress line is printed, and between two progress lines.
STATUS_DELAY = 2.0


class _EscapingConsole(Console):
    """A Console that escapes control characters in text; only rich's own escape sequences reach the terminal."""

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(
            segment if segment.control else Segment(escape_control(segment.text, keep="\n\t"), segment.style)
            for segment in buffer
        )


class _Console(_EscapingConsole):
    """A Console that clears the pending status before printing."""

    def print(self, *objects: Any, **options: Any) -> None:
        # A progress bar redraws itself by printing controls only.
        if not all(isinstance(item, Control) for item in objects):
            clear_status()
        super().print(*objects, **options)


_width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else NON_TTY_WIDTH
stdout_console = _Console(highlight=False, soft_wrap=True, width=_width)
stderr_console = _Console(stderr=True, highlight=False, soft_wrap=True)


# Begins each line of a job of a sweep. (Threads start with an empty context: `copy_context` passes it on.)
_job_prefix = ContextVar("_job_prefix", default="")
_rank = 0


@contextmanager
def log_prefix(prefix: str) -> Iterator[None]:
    """Begin every line that is printed in the block with `prefix`."""
    token = _job_prefix.set(prefix)
    try:
        yield
    finally:
        _job_prefix.reset(token)


def set_rank(rank: int) -> None:
    """Set this process's rank in a distributed training; a rank > 0 shows no status, no progress, and only errors."""
    global _rank
    _rank = rank
    if rank:
        clear_status()


def current_rank() -> int:
    """Return this process's rank in a distributed training; 0 if there is a single process."""
    return _rank


def line_prefix() -> str:
    """Return the beginning of each line of this process: `[rank N] ` or the `log_prefix`."""
    return f"[rank {_rank}] " if _rank else _job_prefix.get()


def _hides_progress() -> bool:
    """Whether this process shows neither a status nor progress: rank > 0, or LOG_LEVEL above INFO (`-q`)."""
    return _rank > 0 or logging.getLogger(PACKAGE).level > logging.INFO


def _prefixed(line: str) -> str:
    """Prepend `line_prefix`, redact secrets, and escape control characters and rich's markup."""
    # Escaped before rich sees it, because rich silently drops some control characters.
    return escape(redact_and_escape(line_prefix() + line))


class _DelayedSpinner:
    """Show a status after `STATUS_DELAY`: a spinner with its seconds on a terminal, one line elsewhere."""

    def __init__(self, description: str) -> None:
        self.line, self.lock, self.stopped = _prefixed(description), threading.Lock(), False
        self.progress: Progress | None = None
        self.timer = threading.Timer(STATUS_DELAY, self._show)
        self.timer.daemon = True
        self.timer.start()

    def _show(self) -> None:
        # On standard error, which leaves standard output to results. Printing on the shared consoles clears the status.
        console = _EscapingConsole(stderr=True, highlight=False, soft_wrap=True)
        with self.lock:
            if self.stopped:
                return
            if not console.is_terminal or _bars:
                console.print(f"{self.line} ...")
                return
            columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
            self.progress = Progress(
                *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self.progress.add_task(self.line)
            self.progress.tasks[0].start_time = self.progress.get_time() - STATUS_DELAY
            self.progress.start()

    def stop(self) -> None:
        self.timer.cancel()
        with self.lock:
            self.stopped = True
            if self.progress:
                self.progress.stop()


_spinner: _DelayedSpinner | None = None
_bars = 0  # number of progress bars on the terminal


def status(description: str) -> None:
    """Show what the program is working on, unless another line is printed within `STATUS_DELAY`."""
    global _spinner
    clear_status()
    if not _hides_progress():
        _spinner = _DelayedSpinner(description)


@atexit.register
def clear_status() -> None:
    """Clear the status line."""
    global _spinner
    spinner, _spinner = _spinner, None
    if spinner:
        spinner.stop()


@contextmanager
def progress_bar(
    description: str,
    total: float | None,
    is_bytes: bool = False,
    transient: bool = False,
    console: Console = stdout_console,
    min_interval: float | None = None,
    initial: float = 0,
) -> Iterator[Callable[[float], None]]:
    """Show progress, rate and remaining time of a task with `total` items (None: unknown).

    Without a terminal, print plain lines: one per tenth of the total, at least `min_interval` seconds apart (default:
    `STATUS_DELAY`), so that short tasks print nothing. `initial` items were done before and do not count for the rate.

    Yields:
        a function that takes the number of items done since its last call.
    """
    clear_status()
    if _hides_progress():
        yield lambda amount: None
        return
    if not console.is_terminal:
        interval = STATUS_DELAY if min_interval is None else min_interval
        yield _TextProgress(description, total, is_bytes, console, interval, initial)
        return
    columns: list[ProgressColumn] = (
        [DownloadColumn(), TransferSpeedColumn()] if is_bytes else [MofNCompleteColumn(), _RateColumn()]
    )
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(max(10, min(40, console.width - len(description) - 40))),
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=transient,
        # Results must reach standard output, also where only standard error is a terminal.
        redirect_stdout=console is stdout_console,
    )
    global _bars
    with bar:
        task = bar.add_task(escape(redact_and_escape(description)), total=total, completed=int(initial))
        _bars += 1
        try:
            yield lambda amount: bar.update(task, advance=amount)
        finally:
            _bars -= 1


class _RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")


class _TextProgress:
    """Print progress as plain lines: at most one per tenth of the total, at least `min_interval` seconds apart."""

    def __init__(
        self,
        description: str,
        total: float | None,
        is_bytes: bool,
        console: Console,
        min_interval: float,
        initial: float,
    ) -> None:
        self.description, self.total, self.is_bytes, self.console = description, total, is_bytes, console
        self.min_interval = min_interval
        self.done, self.initial, self.last_decile = initial, initial, 0
        self.start = self.last_printed = time.monotonic()
        self.started = False

    def __call__(self, amount: float) -> None:
        self.done += amount
        now = time.monotonic()
        decile = int(10 * self.done / self.total) if self.total else self.last_decile + 1
        if decile > self.last_decile and now - self.last_printed >= self.min_interval:
            self.last_decile, self.last_printed = decile, now
            self.console.print(_prefixed(f"{self.description}: {', '.join(self._format(now - self.start))}"))
        if not self.started:
            # The rate is measured from the first call on: compiling or connecting may take longer than all the rest.
            self.started, self.start, self.initial = True, now, self.done

    def _format(self, seconds: float) -> Iterator[str]:
        speed = (self.done - self.initial) / seconds if seconds else 0.0
        size, unit = (1e6, " MB") if self.is_bytes else (1, "")
        yield percent(self.done / self.total, 0) if self.total else f"{self.done / size:,.0f}{unit}"
        if speed:
            yield f"{speed / size:,.1f}{unit}/s" if self.is_bytes or speed < 10 else f"{speed:,.0f}/s"
        if speed and self.total and self.done < self.total:
            yield f"{format_duration((self.total - self.done) / speed)} left"


def format_duration(seconds: float) -> str:
    """Format a duration: `0.4 s`, `48 s`, `3 min 05 s`, `2 h 07 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    minutes, rest = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
