"""Copy the project's configuration for a test to modify, and run stages and scripts in this process."""

import contextlib
import io
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from cifar_pipeline.cli.entrypoint import run_script, run_stage
from cifar_pipeline.config import compose, local_settings
from cifar_pipeline.config.compose import Stage, compose_config
from cifar_pipeline.config.source_files import PROJECT
from cifar_pipeline.sweeps import job
from cifar_pipeline.utils import console
from helpers.environment import environment_kept
from helpers.source_tree import PUBLISHED, ROOT

# A recipe with values for the options that it selects.
FAST = """# @package _global_
defaults:
  - tutorial
  - override /optimizer: muon
  - override /scheduler: one_cycle
  - _self_
optimizer:
  lr: 0.028
  momentum: 0.9
trainer:
  max_epochs: 2
  batch_size: 128
"""

# A `_target_` in src/project/.
USER_TARGET = re.compile(rf"^ *_target_: {PROJECT}\.", re.MULTILINE)


def options_of(group: str, own: bool = False) -> list[str]:
    """Return the options of conf/`group`, except those of a user's code, which has tests of its own in tests/project/.

    `own` leaves out those that inherit from another option.
    """
    files = [
        file for file in sorted((ROOT / "conf" / group).glob("*.yaml")) if not USER_TARGET.search(file.read_text())
    ]
    return [file.stem for file in files if not own or "defaults" not in OmegaConf.load(file)]


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a stage or script."""

    code: Any
    out: str
    err: str

    def assert_refused(self, *fragments: str) -> None:
        """Assert exit code 2 and exactly one sentence on standard error, which contains all fragments."""
        assert (self.code, self.out) == (2, "")
        assert self.err.count("\n") == 1, self.err
        for fragment in fragments:
            assert fragment in self.err
        for noise in ("Traceback", "Error executing job", "HYDRA_FULL_ERROR", "hydra.cc", "_target_: "):
            assert noise not in self.err
        assert self.err.rstrip()[-1] in ".?"


@dataclass(frozen=True)
class Project:
    """A copy of conf/ and the published params.yaml in its own folder, which is the working directory."""

    folder: Path

    @staticmethod
    def made(folder: Path) -> "Project":
        """Copy the project's configuration to `folder`."""
        shutil.copytree(ROOT / "conf", folder / "conf")
        (folder / local_settings.FILE).unlink(missing_ok=True)
        shutil.copy(PUBLISHED / "params.yaml", folder)
        return Project(folder)

    def edit(self, path: str, old: str, new: str) -> None:
        """Replace the first `old`, which must exist, by `new`."""
        text = (self.folder / path).read_text()
        assert old in text, f"{path} has no {old!r}"
        (self.folder / path).write_text(text.replace(old, new, 1))

    def write(self, path: str, text: str) -> None:
        (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / path).write_text(text)

    def compose(self, *overrides: str) -> DictConfig:
        """Compose the configuration with overrides, as on a stage's command line."""
        return compose_config(list(overrides))

    def start(self, stage: Stage, *arguments: str) -> Ended:
        """Run `stage` in this process, as its script does."""
        return started(stage, run_stage, arguments)


def run(script: Callable[[], Any], *arguments: object, listed: str = "", seconds: float = 600) -> Ended:
    """Run a script in this process with `listed` as its standard input; print progress after `seconds`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode()), encoding="utf-8"))
        return started(script, run_script, [str(argument) for argument in arguments], seconds)


def started(
    main: Callable[..., Any], runner: Callable[[Any], None], arguments: Sequence[str], seconds: float = 600
) -> Ended:
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    streams = contextlib.redirect_stdout(out), contextlib.redirect_stderr(err)
    # A command also sets the variables of .env.
    with pytest.MonkeyPatch.context() as patch, streams[0], streams[1], environment_kept():
        patch.setattr(sys, "argv", [str(ROOT / "src" / f"{main.__name__}.py"), *arguments])
        for name in ("PYTHONPATH", "HYDRA_FULL_ERROR", "LOG_LEVEL"):
            patch.setenv(name, "")
        # Otherwise a sweep's last trial would be that of the next test's training in this process.
        patch.setattr(job, "_job", None)
        patch.setattr(compose, "_experiment_name", "")
        # Status lines appear only on a busy machine, and would change the output.
        patch.setattr(console, "STATUS_DELAY", seconds)
        try:
            runner(main)
        except SystemExit as end:
            code = end.code
    return Ended(code, out.getvalue(), err.getvalue())
