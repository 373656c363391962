"""The fingerprint of a training changes with everything that decides its result, and with nothing else."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from omegaconf import DictConfig

from cifar_pipeline.config import source_files
from cifar_pipeline.config.compose import compose_config, fingerprint
from cifar_pipeline.config.source_files import SourceTree
from helpers.config_project import ROOT, Project
from helpers.source_tree import PUBLISHED

Edited = Callable[[str], Path]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of src/ with a second network."""
    copy = tmp_path_factory.mktemp("project") / "src"
    shutil.copytree(ROOT / "src", copy, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    models = copy / "cifar_pipeline" / "models"
    shutil.copy(models / "lenet.py", models / "other.py")
    return copy


@pytest.fixture
def edited(sources: Path, tmp_path: Path) -> Edited:
    """A copy of `sources` in which one file is edited."""

    def edit(file: str) -> Path:
        shutil.copytree(sources, tmp_path / "src")
        path = tmp_path / "src" / "cifar_pipeline" / file
        path.write_text(path.read_text() + "\n# edited\n")
        return tmp_path / "src"

    return edit


@cache
def published(*overrides: str) -> DictConfig:
    """The published configuration, composed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PUBLISHED)
        return compose_config(list(overrides))


@cache
def unchanged(source: Path) -> SourceTree:
    """The files of a folder, read once."""
    return SourceTree(source)


@cache
def fingerprint_of(source: Path, *overrides: str, data: str = "1234") -> str:
    return fingerprint(published(*overrides), data, unchanged(source))


def test_equal_configurations_have_one_fingerprint_however_they_are_written(project: Project, sources: Path) -> None:
    plain = fingerprint_of(sources)
    assert plain == fingerprint_of(sources, "optimizer=sgd", "optimizer.lr=0.001", "seed=0", "experiment=tutorial")
    project.edit("params.yaml", "overrides: {}", "overrides: {optimizer: {lr: 1e-3}}")
    assert plain == fingerprint(project.compose(), "1234", SourceTree(sources))


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "model=lenet model._target_=cifar_pipeline.models.other.LeNet",
        "normalization=per_channel",
        "normalization.mean=0.4",
        "augmentation=flip_crop",
        "loss=mse",
        "loss=label_smoothing",
        "optimizer=adam",
        "optimizer.lr=0.002",
        "scheduler=cosine",
        "scheduler.warmup_fraction=0.1",
        "precision=bf16",
        "trainer.max_epochs=11",
        "trainer.batch_size=8",
        "trainer.limit_train_batches=3",
    ],
)
def test_each_value_that_decides_the_result_changes_the_fingerprint(sources: Path, override: str) -> None:
    assert fingerprint_of(sources, *override.split()) != fingerprint_of(sources)


@pytest.mark.parametrize(
    "override",
    ["runtime.threads=1", "runtime.accelerator=cpu", "runtime.max_cached_runs=0", "rerun=true", "evaluation=best"],
)
def test_values_that_decide_no_result_leave_the_fingerprint(sources: Path, override: str) -> None:
    assert fingerprint_of(sources, override) == fingerprint_of(sources)


def test_other_weights_change_the_fingerprint(sources: Path) -> None:
    digests = {fingerprint(published(), "1234", SourceTree(sources), weights) for weights in ("", "aa", "bb")}
    assert len(digests) == 3


def test_other_data_changes_the_fingerprint(sources: Path) -> None:
    assert fingerprint_of(sources, data="5678") != fingerprint_of(sources)


@pytest.mark.parametrize(
    "file",
    [
        "models/lenet.py",
        "models/__init__.py",
        "models/build.py",
        "training/module.py",
        "training/compiled/small_conv.cpp",
        "data/loader.py",
    ],
)
def test_code_that_is_used_is_part_of_the_fingerprint(sources: Path, edited: Edited, file: str) -> None:
    assert fingerprint_of(edited(file)) != fingerprint_of(sources)


@pytest.mark.parametrize("file", ["models/other.py", "utils/console.py", "tracking/runs.py", "config/schema.py"])
def test_code_that_computes_nothing_is_not_part_of_the_fingerprint(sources: Path, edited: Edited, file: str) -> None:
    assert fingerprint_of(edited(file)) == fingerprint_of(sources)


def test_the_chosen_networks_code_is_part_of_the_fingerprint(sources: Path, edited: Edited) -> None:
    other = "model._target_=cifar_pipeline.models.other.LeNet"
    assert fingerprint_of(edited("models/other.py"), other) != fingerprint_of(sources, other)


def test_a_networks_code_counts_only_if_it_is_chosen(sources: Path, edited: Edited) -> None:
    source = edited("models/airbench.py")
    assert fingerprint_of(source, "model=airbench") != fingerprint_of(sources, "model=airbench")
    assert fingerprint_of(source) == fingerprint_of(sources)


@pytest.fixture
def loose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path with a network that imports other files of that folder."""
    folder = tmp_path / "elsewhere"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "net.py").write_text("from .layers import width\n\nclass Net: ...\n")
    (folder / "mine" / "layers.py").write_text("from helpers import width\n")
    (folder / "helpers.py").write_text("import rich\n\nwidth = 3\n")
    monkeypatch.syspath_prepend(str(folder))
    return folder


@pytest.mark.parametrize("file", ["mine/net.py", "mine/layers.py", "helpers.py"])
def test_code_from_anywhere_is_part_of_the_fingerprint(sources: Path, loose: Path, file: str) -> None:
    target = "model._target_=mine.net.Net"
    before = fingerprint(published(target), "1234", SourceTree(sources))
    assert before == fingerprint(published(target), "1234", SourceTree(sources))
    (loose / file).write_text((loose / file).read_text() + "# edited\n")
    assert before != fingerprint(published(target), "1234", SourceTree(sources))


@pytest.mark.long
def test_code_in_nested_folders_without_init_files_is_part_of_the_fingerprint(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python takes such folders for namespace packages; none of them is imported yet."""
    net = tmp_path / "shared" / "vision" / "nets" / "small.py"
    net.parent.mkdir(parents=True)
    net.write_text("class Net: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    target = "model._target_=shared.vision.nets.small.Net"
    before = fingerprint(published(target), "1234", SourceTree(sources))
    assert before == fingerprint(published(target), "1234", SourceTree(sources))
    net.write_text("class Net: ...  # edited\n")
    assert before != fingerprint(published(target), "1234", SourceTree(sources))


@pytest.mark.parametrize("file", ["project/net.py", "project/shape.json", "own.py"])
def test_a_users_code_is_part_of_the_fingerprint(sources: Path, tmp_path: Path, file: str) -> None:
    source = tmp_path / "src"
    shutil.copytree(sources, source)
    (source / "project" / "net.py").write_text("import own\n")
    (source / "project" / "shape.json").write_text("[3]")
    (source / "own.py").write_text("")
    target = "model._target_=project.net.Net"
    before = fingerprint_of(source), fingerprint(published(target), "1234", SourceTree(source))
    with (source / file).open("a") as text:
        text.write("\n")
    after = (
        fingerprint(published(), "1234", SourceTree(source)),
        fingerprint(published(target), "1234", SourceTree(source)),
    )
    assert before[0] == after[0] and before[1] != after[1]


def test_an_edit_after_the_start_of_the_process_is_not_part_of_the_fingerprint(edited: Edited, sources: Path) -> None:
    source = edited("models/lenet.py")
    loaded, before = SourceTree(source), fingerprint_of(source)
    (source / "cifar_pipeline" / "models" / "lenet.py").write_text("something else\n")
    assert fingerprint(published(), "1234", loaded) == before != fingerprint(published(), "1234", SourceTree(source))
    assert loaded.used("train", ["cifar_pipeline.models.lenet.LeNet"]).changed() == "cifar_pipeline/models/lenet.py"


@pytest.mark.parametrize("package", ["torch", "torchvision", "timm", "numpy", "lightning"])
def test_the_versions_of_packages_that_compute_are_part_of_the_fingerprint(
    sources: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    before, real = fingerprint_of(sources), source_files.version
    monkeypatch.setattr(source_files, "version", lambda name: "9.9" if name == package else real(name))
    assert fingerprint(published(), "1234", SourceTree(sources)) != before
    monkeypatch.setattr(source_files, "version", lambda name: f"{real(name).partition('+')[0]}+cpu")
    assert fingerprint(published(), "1234", SourceTree(sources)) == before


def test_the_version_of_a_package_that_a_users_code_imports_counts(
    sources: Path, loose: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = "model._target_=mine.net.Net"
    before, real = fingerprint(published(target), "1234", SourceTree(sources)), source_files.version
    monkeypatch.setattr(source_files, "version", lambda name: "9.9" if name == "rich" else real(name))
    assert fingerprint(published(target), "1234", SourceTree(sources)) != before
    assert fingerprint(published(), "1234", SourceTree(sources)) == fingerprint_of(sources)


def test_variables_that_change_numbers_are_part_of_the_fingerprint(
    sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint_of(sources)
    for variables, changes in (({"NVIDIA_TF32_OVERRIDE": "0"}, True), ({"OMP_NUM_THREADS": "7"}, False)):
        monkeypatch.setattr(source_files, "_initial_environment", lambda variables=variables: variables)
        assert (fingerprint(published(), "1234", SourceTree(sources)) != before) == changes
