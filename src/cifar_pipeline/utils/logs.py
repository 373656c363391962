"""Configure logging: levels (`-v`, `-q`, LOG_LEVEL), the console handler, and the log file of a sweep's job.

The level applies to our loggers. Libraries log warnings and errors, and with `-v` also INFO. Records up to INFO go to
standard output, warnings and errors to standard error. Hydra creates the handlers of a job from `hydra.job_logging` in
conf/config.yaml, and all other processes the console handler in `configure_logging`.
"""

import logging
import os
import re
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import ConsoleRenderable
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler
from rich.text import Text

from cifar_pipeline.utils.console import PACKAGE, current_rank, line_prefix, stderr_console, stdout_console
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line, print_traceback, redact_and_escape

# The environment variable is inherited by ranks, by a launcher's workers, and by the stages that DVC starts.
LEVEL_VARIABLE = "LOG_LEVEL"
LEVELS = {
    "DEBUG": logging.DEBUG,
    "INFO": logging.INFO,
    "WARNING": logging.WARNING,
    "ERROR": logging.ERROR,
}
LEVEL_OPTIONS = {"-v": "DEBUG", "-q": "WARNING"}
LEVEL_HELP = {"-v": "show debug messages, with time, level and logger", "-q": "show only results, warnings and errors"}
TIME_FORMAT = "%H:%M:%S"

# Levels below which a library's records are hidden, because users cannot act on them.
LIBRARY_LEVELS = {
    # It logs a traceback for each error, which it also raises.
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
    r"|Total length of `list` across ranks is zero"
    # Metrics are already reduced over all ranks when they are logged.
    r"|It is recommended to use `self\.log.*sync_dist=True"
)
WARNINGS_LOGGER = "py.warnings"  # the logger of logging.captureWarnings
# The line of code that Python appends to a warning.
SOURCE_LINE = re.compile(r"\n  [^\n]*\n?\Z")
# Seconds for which a rank > 0 holds its first error back: rank zero usually prints one and terminates it before.
NONZERO_RANK_ERROR_DELAY = 4.0


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
        raise UserError(f"{LEVEL_VARIABLE}={name} is no level; use one of {', '.join(LEVELS)}.")


def propagate_library_logs() -> None:
    """Send the records of libraries that install handlers of their own when imported to the root logger.

    Called after the imports of torch and Lightning. With torch's variable TORCH_LOGS, torch keeps its handlers.
    """
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
    """Hide what a rank > 0 logs, except errors, the first of which it delays by `NONZERO_RANK_ERROR_DELAY`."""

    has_waited = False

    def filter(self, record: logging.LogRecord) -> bool:
        if not current_rank():
            return True
        if record.levelno < logging.ERROR:
            return False
        if not self.has_waited:
            time.sleep(NONZERO_RANK_ERROR_DELAY)
            self.has_waited = True
        return True


class _RedactedRecord(logging.LogRecord):
    """A log record with a redacted and escaped message, also for handlers of libraries."""

    def getMessage(self) -> str:  # noqa: N802
        try:
            message = super().getMessage()
        except Exception:  # A library's arguments that do not fit its format must not stop a training.
            message = f"{self.msg} {self.args}"
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
            message = one_line(SOURCE_LINE.sub("", record.getMessage()))
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
