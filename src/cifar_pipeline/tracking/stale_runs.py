"""Close stale runs: those still RUNNING in MLflow although their process was killed.

A run's tag names its workspace, and a process locks a file in that workspace while it works on the run, so only
processes of the same workspace can tell whether a run is stale. All runs in a workspace's own database belong to it,
also after the database was copied together with the workspace.
"""

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, RunTag, ViewType

from cifar_pipeline.tracking.client import tracking_uri
from cifar_pipeline.utils.atomic import is_locked
from cifar_pipeline.utils.paths import is_training_locked, main_workspace, sweep_dir, workspace_id

# Tag: id of the workspace that a run belongs to, which has the training's checkpoints.
WORKSPACE_TAG = "workspace"
# Tags: number of consecutive crashes of a training's process, and the epoch after which the last one happened.
CRASHES_TAG, CRASH_EPOCH_TAG = "crashes", "crash_epoch"


def close_stale_runs(client: MlflowClient, experiment: str, fingerprint: str, run_id: str) -> None:
    """End the stale runs of this workspace, except `run_id`, which is about to be resumed.

    The caller holds the lock of the training with this fingerprint, so all other RUNNING runs of it are stale.
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
    """Whether the run belongs to this workspace, whose locks show whether a process works on it."""
    return _is_own_database() or run.data.tags.get(WORKSPACE_TAG) == workspace_id()


def _is_own_database() -> bool:
    scheme, _, path = tracking_uri().partition(":///")
    return scheme == "sqlite" and Path(path).resolve() == main_workspace() / "mlflow.db"


def close_if_stale(client: MlflowClient, run: Run) -> None:
    """End a RUNNING run of this workspace as KILLED, unless a process holds the lock of its training."""
    if (
        run.info.status != "RUNNING"
        or not belongs_to_workspace(run)
        or is_training_locked(run.data.tags.get("fingerprint", ""))
    ):
        return
    # Fetched again, because a training ends its run before it releases its lock: it may have ended since.
    run = client.get_run(run.info.run_id)
    if run.info.status == "RUNNING":
        _record_crash(client, run)
        client.set_terminated(run.info.run_id, "KILLED")


def crash_count(client: MlflowClient, run: Run) -> int:
    """Return the number of consecutive crashes of this training; a run that is still RUNNING is another crash.

    The caller holds the training's lock, so no process works on it.
    """
    return _record_crash(client, run) if run.info.status == "RUNNING" else int(run.data.tags.get(CRASHES_TAG, 0))


def logged_epochs(client: MlflowClient, run_id: str) -> int:
    """Return the number of epochs whose metrics the run has, which a resumed training must not log twice."""
    return max((metric.step for metric in client.get_metric_history(run_id, "train/loss")), default=0)


def _record_crash(client: MlflowClient, run: Run) -> int:
    """Count a crash of a training's process and return the number of consecutive ones.

    A training that got further than at the last crash probably did not cause it: counting restarts at 1.
    """
    epoch = logged_epochs(client, run.info.run_id)
    made_progress = epoch > int(run.data.tags.get(CRASH_EPOCH_TAG, 0))
    crashes = 1 if made_progress else int(run.data.tags.get(CRASHES_TAG, 0)) + 1
    client.log_batch(run.info.run_id, tags=[RunTag(CRASHES_TAG, str(crashes)), RunTag(CRASH_EPOCH_TAG, str(epoch))])
    return crashes
