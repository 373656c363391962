"""Compose the configuration (DVC stage `configure`): conf/ and params.yaml -> composed.yaml.

The other stages depend on its keys. Mistakes in the configuration are reported here, before any work.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from cifar_pipeline.cli.entrypoint import is_started_by_dvc, require_unchanged, run_stage
from cifar_pipeline.config.compose import write_composed
from cifar_pipeline.config.dvc_inputs import create_input_folders, require_tracked_inputs
from cifar_pipeline.config.validation import check_targets
from cifar_pipeline.utils.atomic import require_writable

if TYPE_CHECKING:
    from omegaconf import DictConfig

COMPOSED = Path("composed.yaml")


def configure(config: "DictConfig") -> None:
    require_writable(COMPOSED, is_file=True)
    check_targets(config)
    if is_started_by_dvc("configure"):
        require_tracked_inputs(config)
    require_unchanged()
    create_input_folders()
    write_composed(config, COMPOSED)


if __name__ == "__main__":
    run_stage(configure)
