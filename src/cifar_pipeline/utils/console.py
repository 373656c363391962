"""Log and print to the console with rich: log records, tables, a delayed status line and progress bars.

The level of the log (`-v`, `-q`, LOG_LEVEL) applies to our loggers. Libraries log warnings and errors, and with `-v`
also INFO. Records up to INFO, tables and progress go to standard output; warnings, errors and the status line to
standard error. Without a terminal, lines are plain and not wrapped. Every line is redacted and escaped.

Hydra creates the handlers of a job from `hydra.job_logging` in conf/config.yaml; `configure_logging` creates the
console handler of all other processes.
"""

import atexit
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleRenderable
from rich.control import Control
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
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

from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import escape_control, one_line, percent, print_traceback, redact_and_escape

# The logger of this library, whose level is that of the user (`-v`, `-q`, LOG_LEVEL).
PACKAGE = "cifar_pipeline"
# In a pipe or a file nothing needs to fit a screen, and a name wrapped at 80 columns can't be searched for.
NON_TTY_WIDTH = 200
# Seconds before a status or progress line is printed, and between two progress lines.
STATUS_DELAY = 2.0


class _EscapingConsole(Console):
    """A Console that escapes control characters in text; only rich's own escape sequences reach the terminal."""

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        rendered = super()._render_buffer(
            segment if segment.control else Segment(escape_control(segment.text, keep="\n\t"), segment.style)
            for segment in buffer
        )
        # Tables are filled up with blanks to the width of the console.
        return rendered if self.is_terminal else re.sub(r" +$", "", rendered, flags=re.MULTILINE)


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
    """Return whether this process hides status and progress: rank > 0, or LOG_LEVEL above INFO (`-q`)."""
    return _rank > 0 or logging.getLogger(PACKAGE).level > logging.INFO


def _prefixed(line: str) -> str:
    """Prepend `line_prefix`, redact secrets, and escape control characters and rich's markup."""
    # Escaped before rich sees it, because rich silently drops some control characters.
    return escape(redact_and_escape(line_prefix() + line))


def _can_redraw(console: Console) -> bool:
    """Return whether lines can be redrawn. With FORCE_COLOR, rich takes every pipe for a terminal."""
    return console.is_terminal and console.file.isatty()


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
            if not _can_redraw(console) or _bars:
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
    if not _can_redraw(console):
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


# The environment variable is inherited by ranks, by a launcher's workers, and by the stages that DVC starts.
LEVEL_VARIABLE = "LOG_LEVEL"
LEVELS: dict[str, int] = {name: getattr(logging, name) for name in ("DEBUG", "INFO", "WARNING", "ERROR")}
LEVEL_OPTIONS = {"-v": "DEBUG", "-q": "WARNING"}
LEVEL_HELP = {"-v": "show debug messages, with time, level and logger", "-q": "show only results, warnings and errors"}
TIME_FORMAT = "%H:%M:%S"

# Levels below which a library's records are hidden, because users cannot act on them.
LIBRARY_LEVELS = {
    # They log each error, which they also raise.
    "hydra.utils": logging.CRITICAL,
    "mlflow.store.db.utils": logging.CRITICAL,
    # Warnings about a model that is exported correctly.
    "torch.export": logging.CRITICAL,
    "torch.onnx": logging.CRITICAL,
    "onnxscript": logging.CRITICAL,
    "onnx_ir": logging.CRITICAL,
    # That there is no CUDA.
    "torch.utils.cpp_extension": logging.ERROR,
}
# Python warnings that are hidden for the same reason.
HIDDEN_WARNINGS = re.compile(
    r"isinstance\(treespec, LeafSpec\)"
    r"|Checkpoint directory .* exists and is not empty"
    r"|is smaller than the logging interval"
    # The batches are not shuffled then.
    r"|You requested to overfit but enabled"
    # Those of a frozen network are (training/finetuning.py).
    r"|Found \d+ module\(s\) in eval mode at the start of training"
    r"|Total length of `list` across ranks is zero"
    # Metrics are already reduced over all ranks when they are logged.
    r"|It is recommended to use `self\.log.*sync_dist=True"
)
WARNINGS_LOGGER = "py.warnings"  # the logger of logging.captureWarnings
# The line of code that Python appends to a warning.
SOURCE_LINE = re.compile(r"\n  [^\n]*\n?\Z")


def take_level_options(arguments: list[str]) -> None:
    """Remove `-v` and `-q` from a command line, and set LOG_LEVEL by the last of them."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    for option in arguments[:end]:
        if option in LEVEL_OPTIONS:
            os.environ[LEVEL_VARIABLE] = LEVEL_OPTIONS[option]
    arguments[:end] = [argument for argument in arguments[:end] if argument not in LEVEL_OPTIONS]


def configure_logging() -> None:
    """Set levels by LOG_LEVEL, and log warnings and uncaught errors: redacted, escaped, on the console.

    Raises:
        UserError: LOG_LEVEL is none of `LEVELS`.
    """
    sys.excepthook = lambda cls, error, _: print_traceback(error)
    logging.setLogRecordFactory(_RedactedRecord)
    logging.captureWarnings(True)
    # MLflow would install handlers of its own.
    os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
    root = logging.getLogger()
    if not any(isinstance(handler, ConsoleHandler) for handler in root.handlers):
        root.addHandler(ConsoleHandler())
    root.setLevel(_library_level())
    for name in _our_loggers():
        logging.getLogger(name).setLevel(_level())
    if (name := os.environ.get(LEVEL_VARIABLE, "")) and name.upper() not in LEVELS:
        raise UserError(f"LOG_LEVEL={name} is no level; use one of {', '.join(LEVELS)}.")


def propagate_library_logs() -> None:
    """Send the records of libraries that install handlers of their own when imported to the root logger.

    Called after the imports of torch and Lightning. With torch's variable TORCH_LOGS, torch keeps its handlers.
    """
    # Here too, because a library may install its handlers again when more of it is imported.
    for name, level in LIBRARY_LEVELS.items():
        logging.getLogger(name).setLevel(level)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if not isinstance(logger, logging.Logger) or (name.startswith("torch") and "TORCH_LOGS" in os.environ):
            continue
        # Subclasses, such as FileHandler and pytest's, write elsewhere than to the console.
        if kept := [handler for handler in logger.handlers if type(handler) is not logging.StreamHandler]:
            logger.handlers = kept
        elif logger.handlers:
            logger.handlers, logger.propagate = [], True


def close_job_log() -> None:
    """Close the log file of a job, so that the lines that follow it in this process are not written to it."""
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _JobLogHandler)]:
        root.removeHandler(handler)
        handler.close()


def job_log_handler(filename: str, mode: Any) -> logging.Handler:
    """Return a handler that appends to the log file of a sweep's job; without effect in a single run.

    Args:
        filename: path of the log file.
        mode: `hydra.mode`, RUN or MULTIRUN.
    """
    return _JobLogHandler(filename) if getattr(mode, "name", mode) == "MULTIRUN" else logging.NullHandler()


def _level() -> int:
    return LEVELS.get(os.environ.get(LEVEL_VARIABLE, "").upper(), logging.INFO)


def _library_level() -> int:
    return logging.INFO if _level() == logging.DEBUG else max(_level(), logging.WARNING)


def _our_loggers() -> set[str]:
    """Return the loggers of this project; a script's is named after its file where it is imported."""
    return {PACKAGE, "project", "__main__", Path(sys.argv[0]).stem}


def _is_ours(name: str) -> bool:
    return name.partition(".")[0] in _our_loggers()


class LibraryFilter(logging.Filter):
    """Hide records of libraries: below their level, also where a library sets a lower one, and `HIDDEN_WARNINGS`."""

    def filter(self, record: logging.LogRecord) -> bool:
        if _is_ours(record.name):
            return True
        if record.name == WARNINGS_LOGGER and HIDDEN_WARNINGS.search(record.getMessage()):
            return False
        levels = [level for name, level in LIBRARY_LEVELS.items() if f"{record.name}.".startswith(f"{name}.")]
        return record.levelno >= max([_library_level(), *levels])


class RankFilter(logging.Filter):
    """Hide what a rank > 0 logs, except errors."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not current_rank() or record.levelno >= logging.ERROR


class _RedactedRecord(logging.LogRecord):
    """A log record with a redacted and escaped message, for all handlers; a Python warning is one line."""

    def getMessage(self) -> str:  # noqa: N802
        try:
            message = super().getMessage()
        except Exception:  # A library's arguments that do not fit its format must not stop a training.
            message = f"{self.msg} {self.args}"
        if self.name == WARNINGS_LOGGER:
            message = one_line(SOURCE_LINE.sub("", message))
        return redact_and_escape(message)


class RedactingFormatter(logging.Formatter):
    """Format a record with its traceback, redacted and escaped, for a log file."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_and_escape(super().format(record))


class _ConsoleFormatter(logging.Formatter):
    """Format a record as on the console: its prefix and message; a library's in one line, unless `-v` is given."""

    def format(self, record: logging.LogRecord) -> str:
        if _is_ours(record.name) or _level() == logging.DEBUG:
            message = super().format(record)
        else:
            message = one_line(record.getMessage())
        return redact_and_escape(line_prefix() + message)


class ConsoleHandler(RichHandler):
    """Print records up to INFO on standard output, others on standard error, without wrapping.

    Only the message is shown, warnings in yellow and errors in red; with `-v` also time, level and logger.
    """

    def __init__(self) -> None:
        super().__init__(highlighter=NullHighlighter(), keywords=[])
        self.setFormatter(_ConsoleFormatter())
        self.addFilter(LibraryFilter())
        self.addFilter(RankFilter())

    def emit(self, record: logging.LogRecord) -> None:
        self.console = stderr_console if record.levelno >= logging.WARNING else stdout_console
        super().emit(record)

    def render(self, *, record: logging.LogRecord, traceback: Any, message_renderable: Any) -> ConsoleRenderable:
        # Not the table of RichHandler, which wraps the message at the console's width.
        colors = {logging.WARNING: "bold yellow", logging.ERROR: "bold red", logging.CRITICAL: "bold red"}
        message = Text(str(message_renderable), style=colors.get(record.levelno, ""))
        if _level() != logging.DEBUG:
            return message
        time_text = datetime.fromtimestamp(record.created).strftime(TIME_FORMAT)
        return Text.assemble(
            (time_text, "log.time"), " ", self.get_level_text(record), " ", (record.name, "dim"), "  ", message
        )

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        # An output that cannot be written to is reported as the command's error, not as one of `logging`.
        raise


class _JobLogHandler(logging.FileHandler):
    """Append records to the log file of a job, which is created with the first of them."""

    def __init__(self, filename: str) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)
        self.addFilter(LibraryFilter())

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Ignore a full disk: the job fails at its next checkpoint, with a message on the console."""
