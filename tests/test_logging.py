"""Log levels, the lines of the console, captured warnings, ranks, and the log file of a job."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cifar_pipeline.utils import console
from cifar_pipeline.utils.console import LEVEL_OPTIONS, configure_logging, log_prefix, progress_bar, status
from configure import configure
from helpers.config_project import Project, run
from helpers.parameters import some_of
from helpers.source_tree import ROOT, SRC
from registry import registry

log = logging.getLogger("cifar_pipeline.tests")
SCRIPTS = ("build_docs", "export", "predict", "registry", "report", "serve")
STAGES = ("configure", "download", "preprocess", "train", "evaluate")
# Logs each level of our loggers and of a library, a warning, and a result.
EVERYTHING = """
import logging, warnings
from cifar_pipeline.utils.console import configure_logging, status, stdout_console
configure_logging()
for name in ("project.losses", "library"):
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
        logging.getLogger(name).log(level, f"{name} {logging.getLevelName(level)}")
warnings.warn("odd\\nvalue")
stdout_console.print("result")
"""


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("LOG_LEVEL", "COLUMNS")}
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=inherited | {"PYTHONPATH": str(SRC)} | environment,
    )


@pytest.fixture
def level(monkeypatch: pytest.MonkeyPatch):
    """Return a function that sets LOG_LEVEL for this process."""

    def set_level(name: str) -> None:
        monkeypatch.setenv("LOG_LEVEL", name)
        configure_logging()

    yield set_level
    monkeypatch.undo()
    configure_logging()


def test_by_default_only_the_message_is_shown() -> None:
    ended = python(EVERYTHING)
    assert ended.stdout == "project.losses INFO\nresult\n"
    *lines, warned = ended.stderr.splitlines()
    assert lines == ["project.losses WARNING", "project.losses ERROR", "library WARNING", "library ERROR"]
    assert warned == "<string>:8: UserWarning: odd value"


def test_a_warning_is_one_line_without_its_code(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(EVERYTHING)
    ended = python(f"import runpy; runpy.run_path({str(tmp_path / 'script.py')!r})")
    assert ended.stderr.splitlines()[-1] == f"{tmp_path / 'script.py'}:8: UserWarning: odd value"


@pytest.mark.parametrize("name", ["WARNING", "warning", "ERROR"])
def test_a_higher_level_hides_information_but_no_results(name: str) -> None:
    ended = python(EVERYTHING, LOG_LEVEL=name)
    assert ended.stdout == "result\n"
    assert ("project.losses WARNING" in ended.stderr) == ("UserWarning" in ended.stderr) == (name != "ERROR")
    assert "library ERROR" in ended.stderr


def test_debug_shows_time_level_and_logger_and_what_libraries_report() -> None:
    ended = python(EVERYTHING, LOG_LEVEL="DEBUG")
    debug, info, library, result = ended.stdout.splitlines()
    assert debug[2] == debug[5] == ":" and debug[8:] == " DEBUG    project.losses  project.losses DEBUG"
    assert info[8:] == " INFO     project.losses  project.losses INFO"
    assert library[8:] == " INFO     library  library INFO"  # not its DEBUG
    assert result == "result"
    assert " WARNING  py.warnings  <string>:8: UserWarning: odd value\n" in ended.stderr


def test_a_message_is_neither_markup_nor_wrapped_nor_a_format(capsys: pytest.CaptureFixture[str]) -> None:
    line = "[bold]x[/bold] :dog: 100 % " + "y" * 300
    log.info(line)
    log.warning(line)
    assert capsys.readouterr() == (line + "\n", line + "\n")


def test_a_library_s_wrong_arguments_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger("library").warning("%d images", "no")
    assert capsys.readouterr().err == "%d images ('no',)\n"


def test_an_error_of_a_library_is_one_line_and_ours_has_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("library", "cifar_pipeline.tests"):
        try:
            raise ValueError("https://u:topsecret@h/")
        except ValueError:
            logging.getLogger(name).exception("it\n failed")
    library, *ours = capsys.readouterr().err.splitlines()
    assert library == "it failed"
    assert ours[:3] == ["it", " failed", "Traceback (most recent call last):"]
    assert ours[-1] == "ValueError: https://u:***@h/"


@pytest.mark.parametrize(
    "message",
    [
        "`isinstance(treespec, LeafSpec)` is deprecated, use ...",
        "Checkpoint directory /a exists and is not empty.",
        "The number of training batches (1) is smaller than the logging interval",
        "Total length of `list` across ranks is zero.",
        "It is recommended to use `self.log('x', ..., sync_dist=True)`",
    ],
)
def test_warnings_on_which_nobody_can_act_are_hidden_at_every_level(message: str) -> None:
    configure = "from cifar_pipeline.utils.console import configure_logging; configure_logging()"
    ended = python(
        f"import warnings; {configure}; warnings.warn({message!r}); warnings.warn('odd\\nvalue')", LOG_LEVEL="DEBUG"
    )
    assert (
        ended.stderr.endswith(" WARNING  py.warnings  <string>:1: UserWarning: odd value\n")
        and message not in ended.stderr
    )


def test_a_library_that_sets_its_own_level_and_handler_is_still_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    chatty = logging.getLogger("chatty")
    chatty.setLevel(logging.INFO)
    chatty.addHandler(logging.StreamHandler(sys.stderr))
    chatty.propagate = False
    console.propagate_library_logs()
    chatty.info("hello")
    chatty.warning("odd")
    logging.getLogger("hydra.utils").error("Error getting class")
    assert capsys.readouterr() == ("", "odd\n")


def test_quiet_hides_status_and_progress(
    level, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "STATUS_DELAY", 0.0)
    level("WARNING")
    status("Drawing")
    assert console._spinner is None
    with progress_bar("Images", 10, min_interval=0) as advance:
        advance(10)
    assert capsys.readouterr() == ("", "")


def test_a_prefix_begins_the_lines_of_a_block(capsys: pytest.CaptureFixture[str]) -> None:
    with log_prefix("[3] "):
        log.info("inside")
        log.error("wrong")
    log.info("outside")
    assert capsys.readouterr() == ("[3] inside\noutside\n", "[3] wrong\n")


def test_a_rank_above_zero_shows_only_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_rank", 0)
    console.set_rank(2)
    handler = console.ConsoleHandler()
    for number in (logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        handler.handle(log.makeRecord(log.name, number, "", 0, logging.getLevelName(number), (), None))
    status("Drawing")
    assert console._spinner is None
    assert capsys.readouterr() == ("", "[rank 2] ERROR\n[rank 2] CRITICAL\n")


def test_the_options_set_the_variable_that_child_processes_inherit(monkeypatch: pytest.MonkeyPatch) -> None:
    for option, name in LEVEL_OPTIONS.items():
        monkeypatch.setenv("LOG_LEVEL", "ERROR")
        arguments = ["train.py", option, "-m", "seed=1,2"]
        console.take_level_options(arguments)
        assert arguments == ["train.py", "-m", "seed=1,2"] and os.environ["LOG_LEVEL"] == name
    arguments = ["predict.py", "--", "-v"]
    console.take_level_options(arguments)
    assert arguments == ["predict.py", "--", "-v"]


def test_an_unknown_level_is_refused_in_a_sentence(project: Project) -> None:
    environment = {**os.environ, "LOG_LEVEL": "loud", "PYTHONPATH": str(SRC)}
    for script in ("configure", "registry"):
        ended = subprocess.run(
            [sys.executable, SRC / f"{script}.py", *(["list"] if script == "registry" else [])],
            cwd=project.folder, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == "LOG_LEVEL=loud is no level; use one of DEBUG, INFO, WARNING, ERROR.\n"


@pytest.mark.parametrize("script", some_of([*SCRIPTS, *STAGES], 0, -1))
def test_the_help_of_every_command_lists_the_options(script: str) -> None:
    ended = subprocess.run(
        [sys.executable, SRC / f"{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "-v" in ended.stdout and "show debug messages" in ended.stdout and "-q" in ended.stdout


def test_every_command_takes_the_options_anywhere(project: Project) -> None:
    assert project.start(configure, "-v", "seed=0").code == 0
    assert project.start(configure, "seed=0", "-q").code == 0
    project.start(configure, "-q", "seed=x").assert_refused("seed=x")
    assert "the following arguments are required: command" in run(registry, "-v").err


def test_the_configuration_is_printed_without_anything_else(project: Project) -> None:
    plain, verbose = (project.start(configure, "--cfg", "job", *options) for options in ((), ("-v",)))
    assert plain == verbose and plain.out.startswith("data:") and plain.err == ""


def test_a_job_s_file_has_what_the_console_shows_redacted_and_without_colors(tmp_path: Path) -> None:
    root = logging.getLogger()
    handler = console.job_log_handler(str(tmp_path / "train.log"), "MULTIRUN")
    handler.setFormatter(console.RedactingFormatter("%(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    log.info("at https://u:topsecret@h/ \x1b[2J")
    logging.getLogger("library").info("hidden")
    console.close_job_log()
    log.info("after the job")
    assert (tmp_path / "train.log").read_text() == "INFO cifar_pipeline.tests: at https://u:***@h/ \\x1b[2J\n"
    assert handler not in root.handlers


def test_a_single_run_has_no_log_file(tmp_path: Path) -> None:
    assert isinstance(console.job_log_handler(str(tmp_path / "train.log"), "RUN"), logging.NullHandler)
