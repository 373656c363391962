"""The ranks of a training follow from conf/trainer and the environment variables of torchrun or Slurm."""

import pytest

from cifar_pipeline.config.compose import compose_config, fingerprint
from cifar_pipeline.training.distributed import SINGLE_PROCESS, detect_distributed
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project

VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID", "SLURM_NTASKS",
    "SLURM_PROCID", "SLURM_JOB_NAME",
)  # fmt: skip
TORCHRUN = {
    "RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "1",
    "TORCHELASTIC_RUN_ID": "1",
}  # fmt: skip
SLURM = {
    "SLURM_NTASKS": "4", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1", "SLURM_JOB_NAME": "training",
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def detect(*overrides: str, accelerator: str = "cpu"):
    return detect_distributed(compose_config(list(overrides)).trainer, accelerator)


def test_a_training_is_a_single_process_by_default(project: Project) -> None:
    assert detect() is SINGLE_PROCESS
    assert detect("trainer=ddp") is SINGLE_PROCESS  # a CPU
    assert detect("trainer.devices=1") is SINGLE_PROCESS


@pytest.mark.parametrize("overrides", [("trainer.devices=2",), ("trainer=ddp", "trainer.devices=2")])
def test_a_number_of_devices_asks_for_as_many_processes(project: Project, overrides: tuple[str, ...]) -> None:
    two = detect(*overrides)
    assert (two.world_size, two.rank, two.environment, str(two.strategy)) == (2, 0, None, "ddp")


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM])
def test_the_launcher_determines_the_number_of_ranks(
    project: Project, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    context = detect("trainer=ddp")
    assert (context.rank, context.local_world_size, context.num_nodes, context.is_rank_zero) == (3, 2, 2, False)
    with pytest.raises(UserError, match=r"trainer.devices=4, but torchrun or srun started 2"):
        detect("trainer=ddp", "trainer.devices=4")
    assert detect() is SINGLE_PROCESS


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        (["trainer.num_nodes=2"], {}, "started by torchrun or srun"),
        (["trainer=ddp", "trainer.num_nodes=2"], {}, "started by torchrun or srun"),
        (["trainer=ddp", "trainer.devices=2"], {"accelerator": "mps"}, "supports CPUs and CUDA only"),
        (["trainer=fsdp", "trainer.devices=2"], {}, "shards the weights over GPUs, but the accelerator is cpu"),
    ],
)
def test_an_unsupported_number_of_ranks_is_refused(project: Project, overrides, options, message) -> None:
    with pytest.raises(UserError, match=message):
        detect(*overrides, **options)


def test_the_number_of_ranks_is_not_in_the_fingerprint(project: Project) -> None:
    one, two, more = (
        fingerprint(compose_config(overrides), "data")
        for overrides in ([], ["trainer=ddp", "trainer.devices=2"], ["trainer.batch_size=8"])
    )
    assert one == two != more
