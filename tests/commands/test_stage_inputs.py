"""A stage runs with the values that DVC records, and publishes nothing if an input changed since it started."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cifar_pipeline.cli.entrypoint import require_unchanged, watch
from cifar_pipeline.config import source_files
from cifar_pipeline.utils.file_hashes import hash_content, hash_stats
from configure import configure
from helpers.config_project import Project
from helpers.parameters import some_of

LR = ("overrides: {}", "overrides: {optimizer: {lr: 0.3}}")


@pytest.fixture
def recorded(project: Project, monkeypatch: pytest.MonkeyPatch) -> Project:
    """Return a project with its composed.yaml, in an environment where DVC starts the stage `train`."""
    assert project.start(configure).code == 0
    monkeypatch.setenv("DVC_STAGE", "train")
    return project


def stage_that(action: Callable[[], object]) -> Callable[..., None]:
    """Return a stage that calls `action` between its start and its result."""

    def train(config: object) -> None:
        action()
        require_unchanged()
        Path("published").touch()

    return train


def test_a_stage_that_dvc_starts_runs_on_what_dvc_records(recorded: Project) -> None:
    assert recorded.start(stage_that(lambda: None)).code == 0
    assert (recorded.folder / "published").exists()


def test_a_pending_edit_is_refused_before_any_work(recorded: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded.edit("params.yaml", *LR)
    recorded.start(stage_that(pytest.fail)).assert_refused(
        "optimizer.lr is 0.3 in params.yaml and conf/, but 0.001 in composed.yaml, which DVC records", "`dvc repro`"
    )
    monkeypatch.delenv("DVC_STAGE")
    assert recorded.start(stage_that(lambda: None)).code == 0


def test_values_that_a_stage_does_not_depend_on_may_differ(recorded: Project) -> None:
    recorded.write("dvc.yaml", "stages: {train: {params: [{composed.yaml: [optimizer, versions.train]}]}}\n")
    recorded.edit("params.yaml", "evaluation: null", "evaluation: best")
    assert recorded.start(stage_that(lambda: None)).code == 0


def test_another_installed_version_is_refused(recorded: Project) -> None:
    recorded.edit("composed.yaml", "    torch: ", "    torch: 1.")
    recorded.start(stage_that(pytest.fail)).assert_refused(
        "is installed, but composed.yaml", "`dvc repro -f configure`"
    )


@pytest.mark.parametrize("content", [None, "[", "1"])
def test_a_composed_file_that_is_damaged_is_refused(recorded: Project, content: str | None) -> None:
    path = recorded.folder / "composed.yaml"
    path.unlink() if content is None else path.write_text(content)
    recorded.start(stage_that(pytest.fail)).assert_refused("composed.yaml is missing or damaged")


CHANGES: dict[str, tuple[Callable[[Project], object], str]] = {
    "a value in params.yaml": (
        lambda project: project.edit("params.yaml", *LR),
        "optimizer.lr was changed from 0.001 to 0.3",
    ),
    "a value in conf/": (
        lambda project: project.edit("conf/optimizer/sgd.yaml", "lr: 0.001", "lr: 0.002"),
        "optimizer.lr was changed from 0.001 to 0.002",
    ),
    "an unfinished edit": (
        lambda project: project.write("conf/optimizer/sgd.yaml", "lr: [\n"),
        "params.yaml or conf/ was edited (conf/optimizer/sgd.yaml, line 2",
    ),
    "composed.yaml": (
        lambda project: project.edit("composed.yaml", "  lr: 0.001", "  lr: 0.1"),
        "optimizer.lr was changed from 0.001 to 0.1 in composed.yaml",
    ),
}


@pytest.mark.parametrize("change", some_of(CHANGES, 0, -1))
def test_what_changes_while_a_stage_runs_keeps_it_from_publishing(recorded: Project, change: str) -> None:
    edit, message = CHANGES[change]
    ended = recorded.start(stage_that(lambda: edit(recorded)))
    assert ended.code == 1 and ended.err.count("\n") == 1, ended.err
    assert message in ended.err and "while this ran, so nothing was published: run `dvc repro`" in ended.err
    assert not (recorded.folder / "published").exists()


def test_by_hand_the_same_command_is_named(project: Project) -> None:
    ended = project.start(stage_that(lambda: project.edit("params.yaml", *LR)), "seed=1")
    assert ended.code == 1
    assert "run the same command to use the change, or undo the change first to keep the finished training" in ended.err
    # The command line takes precedence over an edit of params.yaml.
    assert project.start(stage_that(lambda: project.edit("params.yaml", "0.3", "0.4")), "optimizer.lr=0.5").code == 0


def test_an_input_that_changes_keeps_a_stage_from_publishing(project: Project) -> None:
    project.write("input/file", "before")

    def changed() -> None:
        watch("input", lambda: hash_content(Path("input")))
        project.write("input/file", "after!")

    ended = project.start(stage_that(changed))
    assert ended.code == 1 and ended.err.startswith("input was changed while this ran")


def test_the_hash_of_file_stats_changes_with_every_change(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    hashes = {hash_stats(tmp_path / "gone"), hash_stats(folder)}
    for change in (
        lambda: (folder / "a").write_text("1"),
        lambda: (folder / "a").write_text("2"),
        lambda: (folder / "a").rename(folder / "b"),
        lambda: (folder / "b").unlink(),
    ):
        change()
        hashes.add(hash_stats(folder))
    assert len(hashes) == 5  # empty again at the end


def test_variables_that_change_numbers_are_distinguished_from_others() -> None:
    relevant = {
        "NVIDIA_TF32_OVERRIDE": "1", "ONEDNN_MAX_CPU_ISA": "AVX2", "TORCHINDUCTOR_FREEZING": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "ATEN_CPU_CAPABILITY": "default", "PYTORCH_JIT": "0",
    }  # fmt: skip
    others = {
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0", "TORCHINDUCTOR_CACHE_DIR": "/x", "PATH": "/bin",
        "PYTORCH_CUDA_ALLOC_CONF": "x", "ONEDNN_VERBOSE": "1", "PYTORCH_KERNEL_CACHE_PATH": "/x",
    }  # fmt: skip
    assert source_files.variables(relevant | others) == dict(sorted(relevant.items()))
