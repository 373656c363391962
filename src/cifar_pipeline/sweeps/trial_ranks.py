"""Train a trial of a sweep in several processes, its ranks, which torchrun starts from the trial's process.

A rank is started with the file that this module writes into the trial's folder: the trial, its configuration, Hydra's
state and the stage, as Hydra's launchers pass them to their workers. So it composes nothing itself, and it works for
each launcher. How a rank ended, if not well, is in another file of the folder.

Rank: python -m cifar_pipeline.sweeps.trial_ranks FILE SHA-256
"""

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

import cloudpickle
from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import configure_log, setup_globals
from omegaconf import DictConfig

from cifar_pipeline.config.compose import Stage, output_root
from cifar_pipeline.sweeps.job import Job, current_job, current_task, describe_failure, require_same_basis, start_job
from cifar_pipeline.tracking.trial import TrialPruned
from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.console import log_prefix
from cifar_pipeline.utils.errors import EnvironmentFailure, describe_environment_error

START, END = ".ranks.pickle", ".ranks.json"


@dataclass(frozen=True)
class RankStart:
    """Start of a rank: state of the trial's process.

    Attributes:
        singletons: Hydra's state in the trial's process.
        job: the trial, and what its sweep started with.
        stage: what all ranks run.
        config: the trial's.
    """

    singletons: Any
    job: Job
    stage: Stage
    config: DictConfig


@contextmanager
def rank_command() -> Iterator[list[str]]:
    """Write what the ranks of this process's trial start with, and yield the arguments of Python that start one.

    Raises, at the end of the block, what ended the training in a rank: TrialPruned or EnvironmentFailure.
    """
    job, task = current_job(), current_task()
    assert job and task
    start, end = output_root() / START, output_root() / END
    end.unlink(missing_ok=True)
    content = cloudpickle.dumps(RankStart(Singleton.get_state(), job, *task))
    with atomic_write(start) as tmp:
        tmp.write_bytes(content)
    try:
        yield ["-m", __spec__.name, str(start), sha256(content).hexdigest()]
        _raise_reason(end)
    except EnvironmentFailure:
        _raise_reason(end)
        raise
    finally:
        for path in (start, end):
            path.unlink(missing_ok=True)


def _raise_reason(path: Path) -> None:
    """Raise the exception that the first failed rank has recorded, if one has."""
    with suppress(FileNotFoundError):
        end = json.loads(path.read_text(encoding="utf-8"))
        raise (TrialPruned if end["pruned"] else EnvironmentFailure)(end["reason"])


def run_rank(path: Path, digest: str) -> int:
    """Run the stage as a rank, and return its exit code. `digest` is that of the file, in hexadecimal digits."""
    os.environ["HYDRA_FULL_ERROR"] = "1"
    content = path.read_bytes()
    # A pickle runs code, so only the one that the trial's process has written is loaded.
    if sha256(content).hexdigest() != digest:
        print(f"{path} was changed while the processes of the trial were starting.", file=sys.stderr)
        return 1
    start: RankStart = cloudpickle.loads(content)
    setup_globals()
    Singleton.set_state(start.singletons)
    settings = HydraConfig.get()
    configure_log(cast("DictConfig", settings.job_logging), settings.verbose)  # the trial's log file
    start_job(start.job)
    with log_prefix(f"[{start.job.trial.number}] "):
        try:
            require_same_basis(start.config)
            start.stage(start.config)
        except KeyboardInterrupt:
            return 128 + signal.SIGINT
        except TrialPruned as pruned:
            _record_end(str(pruned), pruned=True)
        except Exception as error:
            if describe_environment_error(error) != "":  # another rank has ended, and says why
                _record_end(describe_failure(error))
            return 1
    return 0


def _record_end(reason: str, pruned: bool = False) -> None:
    """Record why the training ended; the first rank that does so counts."""
    path = output_root() / END
    if not path.exists():
        with atomic_write(path) as tmp:
            tmp.write_text(json.dumps({"reason": reason, "pruned": pruned}), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_rank(Path(sys.argv[1]), sys.argv[2]))
