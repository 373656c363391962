"""Suggest a learning rate for the recipe (`make lr`): data/processed -> reports/lr_finder.png and lr_finder.csv.

Takes the overrides of train.py. Nothing else is written: no weights, no run in MLflow.
"""

import logging
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifar_pipeline.cli.entrypoint import run_stage
from cifar_pipeline.config.compose import NON_RESULT_GROUPS, available_cores, is_sweep, restrict_to_stage
from cifar_pipeline.config.params import params_values
from cifar_pipeline.utils.errors import UserError

if TYPE_CHECKING:
    from omegaconf import DictConfig

log = logging.getLogger(__name__)

PROCESSED = Path("data/processed")
FIGURE, TABLE = Path("reports/lr_finder.png"), Path("reports/lr_finder.csv")


def find_lr(config: "DictConfig") -> None:
    """Run Lightning's learning rate finder, draw its result, and print the suggestion as configuration."""
    if is_sweep():
        raise UserError("find_lr.py tests one recipe: leave out -m.")
    config = restrict_to_stage(config, "train")
    lr = config.optimizer.get("lr")
    if lr is None:
        raise UserError(f"{config.optimizer._target_} has no key optimizer.lr, which this would suggest a value for.")
    if config.lr_finder.min_lr >= config.lr_finder.max_lr:
        raise UserError(
            f"lr_finder.min_lr={config.lr_finder.min_lr:g} must be below lr_finder.max_lr={config.lr_finder.max_lr:g}."
        )
    from functools import partial

    import pandas as pd

    from cifar_pipeline.config.validation import check_targets
    from cifar_pipeline.data.dataset import Dataset, require_matching_config
    from cifar_pipeline.models.build import build_untrained_model
    from cifar_pipeline.models.pretrained import load_pretrained
    from cifar_pipeline.reporting.plots import range_test_figure
    from cifar_pipeline.reporting.style import save
    from cifar_pipeline.tracking.model_uri import resolve_model
    from cifar_pipeline.training import tuning
    from cifar_pipeline.training.checkpoints import RunDir
    from cifar_pipeline.training.compiled.engine import EAGER
    from cifar_pipeline.training.distributed import SINGLE_PROCESS
    from cifar_pipeline.training.hardware import select_accelerator, select_hardware
    from cifar_pipeline.training.setup import build_training, micro_batch_size
    from cifar_pipeline.utils.atomic import atomic_write, require_writable
    from cifar_pipeline.utils.console import propagate_library_logs
    from cifar_pipeline.utils.process import disable_malloc_trim

    propagate_library_logs()
    disable_malloc_trim()
    check_targets(config)
    for path in (FIGURE, TABLE):
        require_writable(path, is_file=True)
    dataset = Dataset.open(PROCESSED)
    dataset.verify()
    require_matching_config(dataset, config.data)
    accelerator, _ = select_accelerator(config.runtime.accelerator)
    weights = load_pretrained(config.model, resolve_model)
    config = tuning.resolve_batch_size(config, dataset, accelerator, SINGLE_PROCESS, weights)
    network = partial(build_untrained_model, config, dataset, weights)
    hardware = select_hardware(
        config.runtime, config.precision, available_cores(), micro_batch_size(config), network=network
    )
    setup = build_training(config, dataset, hardware, EAGER, RunDir(Path("lr_finder")), SINGLE_PROCESS, {}, weights)
    test = tuning.find_lr(setup, lr, config.lr_finder)

    with atomic_write(TABLE) as tmp:
        pd.DataFrame({"lr": test.lrs, "loss": test.losses}).to_csv(tmp, index=False)
    optimizer, model = (config[group]._target_.rpartition(".")[2] for group in ("optimizer", "model"))
    title = f"Learning rate range test: {model}, {optimizer}, batches of {config.trainer.batch_size}, {dataset.caption}"
    is_log = config.lr_finder.mode == "exponential"
    save(range_test_figure(test.lrs, test.losses, test.smoothed, test.suggestion, title, is_log), FIGURE)
    if test.suggestion is None:
        raise UserError(
            f"No suggestion, because the loss does not fall clearly in these {len(test.lrs)} steps ({FIGURE}): set a "
            "larger lr_finder.num_training, or another lr_finder.min_lr or lr_finder.max_lr."
        )
    print_suggestion(config.optimizer, test.suggestion)


def print_suggestion(optimizer: Any, suggestion: float) -> None:
    """Print the learning rate, the lines for params.yaml and the command of a training with it.

    An optimizer's further learning rates, such as `bias_lr`, keep their ratios to `lr`, as in the test.
    """
    from hydra.core.hydra_config import HydraConfig

    factor = suggestion / optimizer.lr
    others = {f"optimizer.{key}": f"{optimizer[key] * factor:.2g}" for key in optimizer if str(key).endswith("_lr")}
    found = {"optimizer.lr": f"{suggestion:g}", **others}
    log.info(f"Suggested learning rate: {suggestion:g} (configured: {optimizer.lr:g}; see {FIGURE})")
    if others:
        log.info(f"The optimizer has several learning rates, and the test multiplied all of them by {factor:.2g}.")
    typed = [override.lstrip("+").partition("=") for override in HydraConfig.get().overrides.task]
    values = {key: value for key, _, value in typed if key.partition(".")[0] not in NON_RESULT_GROUPS} | found
    for key, value in params_values(values).items():
        log.info(f"params.yaml: {key}: {value}")
    log.info(
        "Command line: " + shlex.join(["python", "src/train.py", *(f"{key}={value}" for key, value in values.items())])
    )


if __name__ == "__main__":
    run_stage(find_lr)
