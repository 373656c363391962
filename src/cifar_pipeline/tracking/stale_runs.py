"""Runs that a process has left RUNNING because it was killed: found, counted and ended.

A run says which workspace it is of, and a process holds a lock in that workspace for as long as it is at the run. So
only a process of the same workspace ends it. In a workspace's own database all runs are its own, also where it was
copied with the workspace.
"""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag, ViewType

from cifar_pipeline.tracking.client import tracking_uri
from cifar_pipeline.utils.atomic import is_locked
from cifar_pipeline.utils.paths import is_training_locked, main_workspace, sweep_dir, workspace_id

# The tag that says which workspace a run is of: a training's checkpoints are there.
WORKSPACE_TAG = "workspace"
# The tag that counts how often in a row a process at a training ended without a word, and that says after which epoch.
CRASHES_TAG, CRASH_EPOCH_TAG = "crashes", "crash_epoch"


def close_stale_runs(client: MlflowClient, experiment: str, fingerprint: str, run_id: str) -> None:
    """End the runs of this workspace that were left, but for the one with this id, which is about to be gone on with.

    Whoever asks holds the training with this fingerprint, so that another run of it (of a rerun, for one) was left.
    """
    condition = "attributes.status = 'RUNNING'"
    if not _is_own_database():
        condition += f" and tags.{WORKSPACE_TAG} = '{workspace_id()}'"
    for run in client.search_runs([experiment], condition, ViewType.ACTIVE_ONLY, max_results=1000):
        tags = run.data.tags
        if tags.get("fingerprint", fingerprint) != fingerprint:
            close_if_stale(client, run)
            continue
        is_other = "fingerprint" in tags and run.info.run_id != run_id
        if is_other or ("sweep" in tags and not is_locked(sweep_dir(tags["sweep"]))):
            client.set_terminated(run.info.run_id, "KILLED")


def belongs_to_workspace(run: Run) -> bool:
    """Whether the run is one of this workspace, where a lock says whether some process is at it."""
    return _is_own_database() or run.data.tags.get(WORKSPACE_TAG) == workspace_id()


def _is_own_database() -> bool:
    scheme, _, path = tracking_uri().partition(":///")
    return scheme == "sqlite" and Path(path).resolve() == main_workspace() / "mlflow.db"


def close_if_stale(client: MlflowClient, run: Run) -> None:
    """End a RUNNING run of this workspace as KILLED, unless some process is at its training."""
    if (
        run.info.status != "RUNNING"
        or not belongs_to_workspace(run)
        or is_training_locked(run.data.tags.get("fingerprint", ""))
    ):
        return
    # Asked anew: a training ends its run before it lets go of its folder, so one that has just ended says so now.
    run = client.get_run(run.info.run_id)
    if run.info.status == "RUNNING":
        _record_crash(client, run)
        client.set_terminated(run.info.run_id, "KILLED")


def crash_count(client: MlflowClient, run: Run) -> int:
    """How often in a row a process at this training ended without a word: once more where the run is still RUNNING.

    Whoever asks holds the training's lock, so nobody is at it.
    """
    return _record_crash(client, run) if run.info.status == "RUNNING" else int(run.data.tags.get(CRASHES_TAG, 0))


def logged_epochs(client: MlflowClient, run_id: str) -> int:
    """How many epochs' metrics the run has: a continued training must not put them there twice."""
    return max((metric.step for metric in client.get_metric_history(run_id, "train/loss")), default=0)


def _record_crash(client: MlflowClient, run: Run) -> int:
    """Count a process at a training that ended without a word; how many it were in a row.

    A training that has come further since the last time has not ended its process by itself: it starts from 1 again.
    """
    epoch = logged_epochs(client, run.info.run_id)
    further = epoch > int(run.data.tags.get(CRASH_EPOCH_TAG, 0))
    deaths = 1 if further else int(run.data.tags.get(CRASHES_TAG, 0)) + 1
    client.log_batch(run.info.run_id, tags=[RunTag(CRASHES_TAG, str(deaths)), RunTag(CRASH_EPOCH_TAG, str(epoch))])
    return deaths
