"""What a launcher needs of the machine on which a sweep is started, asked for before the sweep is opened."""

import os
import re
import shutil
import socket

from omegaconf import DictConfig

from cifar_pipeline.console import Refusal

SECONDS = 5


def require(config: DictConfig) -> None:
    """Refuse a launcher that can start no job from here."""
    launcher = config.hydra.runtime.choices["hydra/launcher"]
    if launcher == "submitit_slurm" and shutil.which("sbatch") is None:
        raise Refusal(
            "Slurm's `sbatch` is not on this machine: start the sweep where it is, or take launcher=submitit_local."
        )
    if launcher == "ray":
        _require_cluster(config.hydra.launcher.ray.init.get("address") or os.environ.get("RAY_ADDRESS", ""))


def _require_cluster(address: str) -> None:
    """Refuse the address of a cluster where nobody listens: Ray itself would try for minutes."""
    found = re.fullmatch(r"(?:ray://)?([^:/]+):(\d+)", address)
    if not found:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=SECONDS).close()
    except OSError:
        raise Refusal(
            f"No Ray cluster answers at {address}: start it, or leave hydra.launcher.ray.init.address and RAY_ADDRESS "
            "empty for this machine alone."
        ) from None
