"""Console output: plain lines without a terminal, no progress for short tasks, colors only where allowed."""

import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from cifar_pipeline.utils import console
from cifar_pipeline.utils.console import clear_status, format_duration, progress_bar, status
from helpers.source_tree import SRC

log = logging.getLogger("cifar_pipeline.tests")
CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")
COLOR = re.compile(r"\x1b\[(?:[0-9]+;)*(?:3[0-9]|4[0-9]|9[0-7]|10[0-7])(?:;[0-9]+)*m")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that the test advances."""
    now = [1000.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def lines(clock: list[float], seconds: float, steps: int = 10, **options: object) -> list[str]:
    """Return the lines printed to a file during `steps` equal steps that take `seconds` in total."""
    page = io.StringIO()
    with progress_bar("Test images", steps * 100, console=Console(file=page), **options) as advance:  # type: ignore[arg-type]
        for _ in range(steps):
            clock[0] += seconds / steps
            advance(100)
    return page.getvalue().splitlines()


def test_a_task_of_less_than_two_seconds_prints_nothing(clock: list[float]) -> None:
    assert lines(clock, 1.9) == []


def test_longer_tasks_print_progress_rate_and_remaining_time(clock: list[float]) -> None:
    assert lines(clock, 10)[:2] == ["Test images: 20 %, 100/s, 8.0 s left", "Test images: 40 %, 100/s, 6.0 s left"]
    assert lines(clock, 1000)[0] == "Test images: 10 %, 1.0/s, 15 min 00 s left"
    assert lines(clock, 1000)[-1] == "Test images: 100 %, 1.0/s"


def test_at_most_ten_lines_are_printed_at_the_minimum_interval(clock: list[float]) -> None:
    assert len(lines(clock, 1e5, steps=1000)) == 10
    assert len(lines(clock, 10, steps=1000)) == 4
    assert len(lines(clock, 100, min_interval=30)) == 3


def test_bytes_downloaded_before_do_not_count_for_the_rate(clock: list[float]) -> None:
    page = io.StringIO()
    options = {"is_bytes": True, "initial": 100e6, "console": Console(file=page)}
    with progress_bar("Downloading", 200e6, **options) as advance:  # type: ignore[arg-type]
        clock[0] += 5
        advance(50e6)
    assert page.getvalue() == "Downloading: 75 %, 10.0 MB/s, 5.0 s left\n"


def test_without_a_total_the_amount_is_printed(clock: list[float]) -> None:
    page = io.StringIO()
    with progress_bar("Downloading", None, is_bytes=True, console=Console(file=page)) as advance:
        for _ in range(3):
            clock[0] += 4
            advance(8e6)
    assert page.getvalue().splitlines() == [f"Downloading: {8 * n} MB, 2.0 MB/s" for n in (1, 2, 3)]


def test_brackets_are_no_markup(clock: list[float]) -> None:
    page = io.StringIO()
    with progress_bar("[bold]x", 1, console=Console(file=page), min_interval=0) as advance:
        advance(1)
    assert page.getvalue().startswith("[bold]x: 100 %")


def wait_for(text: str, capsys: pytest.CaptureFixture[str]) -> str:
    output = ""
    for _ in range(500):
        output += capsys.readouterr().err
        if text in output:
            return output
        time.sleep(0.01)
    raise AssertionError(f"{text!r} was not printed, but {output!r}")


def test_a_status_is_printed_once_after_a_delay(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "STATUS_DELAY", 0.02)
    status("Drawing [all] figures")
    assert wait_for("...", capsys) == "Drawing [all] figures ...\n"
    time.sleep(0.1)
    clear_status()
    assert capsys.readouterr().err == ""  # once


@pytest.mark.parametrize(
    "line", [lambda: log.info("done"), lambda: log.warning("odd"), lambda: log.error("no"), clear_status]
)
def test_any_other_line_clears_the_status(
    line: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "STATUS_DELAY", 0.05)
    status("Drawing figures")
    line()  # type: ignore[operator]
    time.sleep(0.15)
    assert "..." not in capsys.readouterr().err


def on_terminal(program: str, **environment: str) -> str:
    """Run a program on a terminal of 80 columns, and return what it prints."""
    ours, theirs = pty.openpty()
    inherited = {
        name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")
    }
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=theirs, stdout=theirs, stderr=theirs, cwd=SRC,
        env={**inherited, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
    )  # fmt: skip
    os.close(theirs)
    written = b""
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # on Linux: the other end is closed
            break
        if not data:
            break
        written += data
    os.close(ours)
    assert child.wait() == 0, written
    return written.decode()


BARS = """
import logging, time
from cifar_pipeline.utils import console
console.configure_logging()
console.STATUS_DELAY = 0.1
with console.progress_bar("Test images", 1000, transient=True) as advance:
    for _ in range(5):
        advance(200)
        time.sleep(0.1)
    console.status("Compiling")
    time.sleep(0.3)
console.status("Drawing figures")
time.sleep(0.4)
logging.getLogger("project").info("That is all")
logging.getLogger("project").warning("Odd")
"""


def test_a_terminal_shows_bars_that_vanish_and_keeps_lines() -> None:
    written = on_terminal(BARS)
    plain = CONTROL.sub("", written)
    assert re.search(r"Test images ━+ +\d+/1000 +[\d,]+/s", plain)
    assert "Compiling ..." in plain  # while there is a bar, a status is a plain line
    assert re.search(r"Drawing figures 0:00:0\d", plain) and "Drawing figures ..." not in plain
    assert plain.count("That is all") == 1 and COLOR.search(written)
    # The cursor is shown again as often as it was hidden.
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") > 0


def test_no_color_is_honored() -> None:
    written = on_terminal(BARS, NO_COLOR="1")
    assert "Odd" in written and not COLOR.search(written)


def test_colors_in_a_pipe_do_not_make_it_a_terminal() -> None:
    environment = {**os.environ, "FORCE_COLOR": "1"}
    command = [sys.executable, "-c", BARS]
    done = subprocess.run(command, cwd=SRC, env=environment, capture_output=True, text=True, check=True)
    written = CONTROL.sub("", done.stdout + done.stderr)
    assert "Drawing figures ..." in written and "That is all" in written
    assert "\x1b[?25l" not in done.stdout + done.stderr and "━" not in written


def test_the_status_is_not_printed_on_standard_output() -> None:
    program = (
        "import time; from cifar_pipeline.utils import console; console.STATUS_DELAY = 0.05; console.status('Loading');"
        "time.sleep(0.3); print('{}')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=SRC, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {} and done.stderr == "Loading ...\n"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")],
)
def test_durations_are_formatted_for_people(seconds: float, expected: str) -> None:
    assert format_duration(seconds) == expected


def test_a_table_in_a_file_is_not_wrapped_at_the_width_of_a_screen(tmp_path: Path) -> None:
    text = "x" * 120
    code = (
        "from cifar_pipeline.utils.console import stdout_console; from rich.table import Table\n"
        f"table = Table(); table.add_row({text!r}); stdout_console.print(table, soft_wrap=False)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "COLUMNS"} | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert text in done.stdout


def test_a_table_in_a_file_has_no_blanks_at_the_ends_of_its_lines(tmp_path: Path) -> None:
    code = (
        "from cifar_pipeline.utils.console import stdout_console; from rich.table import Table; "
        "from rich.padding import Padding\n"
        "table = Table(box=None); table.add_row('cat', 'x'); table.add_row('dog', 'longer')\n"
        "stdout_console.print(Padding(table, (0, 0, 0, 1)), soft_wrap=False)"
    )
    environment = os.environ | {"PYTHONPATH": str(SRC)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert [line for line in done.stdout.splitlines() if line != line.rstrip()] == []
    assert "cat" in done.stdout and "longer" in done.stdout
