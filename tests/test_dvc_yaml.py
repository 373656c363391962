"""dvc.yaml lists exactly the code, the configuration and the package versions that each stage uses."""

import sys
from pathlib import Path

import pytest
import yaml
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.config.compose import STAGES as STAGE_NAMES
from cifar_pipeline.config.compose import restrict_to_stage
from cifar_pipeline.config.source_files import IMPORTED_AS, NON_RESULT_PACKAGES, PACKAGES
from helpers.source_tree import FILES, PACKAGE, ROOT, SRC, imported_files, imported_packages, name_of, package_of

STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
# Folders of a user's own code that a stage may use: data sources before the training, everything from there on.
USER_SOURCES, USER_CODE = {"src/project/__init__.py", "src/project/data"}, {"src/project"}
USER_DEPENDENCIES = {
    "download": USER_SOURCES, "preprocess": USER_SOURCES, "train": USER_CODE, "evaluate": USER_CODE,
}  # fmt: skip
# Packages that download, store, display or check: they change no number, no image and no table.
NOT_COMPUTING_PACKAGES = {
    "filelock", "google", "huggingface_hub", "hydra", "jinja2", "markupsafe", "mlflow", "omegaconf", "pooch", "psutil",
    "requests", "rich", "safetensors", "yaml",
}  # fmt: skip
# Packages that a stage imports, but which cannot change its outputs: the list of skipped files is made without torch
# and pandas; a training reads no image files, attributes nothing, and writes the same table of epochs with any pandas;
# ONNX Runtime checks what is exported, and onnx what is evaluated; scikit-learn and scipy are needed with `--model`,
# which is no stage. (`preprocess` depends on pillow-heif where there are images that it may read.)
UNUSED = {
    "preprocess": {"pandas", "pillow-heif", "torch", "torchmetrics"},
    "train": {"captum", "onnxruntime", "pandas", "pillow-heif"},
    "evaluate": {"onnx", "pillow-heif", "scikit-learn", "scipy"},
}
each_stage = pytest.mark.parametrize("stage", STAGES)


def script(stage: str) -> Path:
    return ROOT / STAGES[stage]["cmd"].removeprefix("python ")


def body(stage: str) -> Path:
    """Return the file with the function of the stage: in stages/, or the script itself."""
    path = SRC / PACKAGE / "stages" / f"{stage}.py"
    return path if path.is_file() else script(stage)


def params(stage: str) -> set[str]:
    entries = STAGES[stage].get("params", [])
    return {key for entry in entries for key in entry["composed.yaml"]}


@each_stage
def test_a_stage_depends_on_the_code_that_computes_in_it(stage):
    named = {dependency for dependency in STAGES[stage]["deps"] if dependency.startswith("src/")}
    packages = computing_packages(script(stage)) | ({"config"} if stage == "configure" else set())
    stages = {"stages"} & packages
    ours = {f"src/{name_of(script(stage))}", *(f"src/{PACKAGE}/{package}" for package in packages - stages)}
    ours |= {f"src/{PACKAGE}/stages/{stage}.py" for _ in stages}
    # The loss that `evaluate` reports is a class of training/ that the metadata of the model names.
    ours |= {f"src/{PACKAGE}/training"} if stage == "evaluate" else set()
    assert named == ours | USER_DEPENDENCIES.get(stage, set())


@each_stage
def test_a_stage_depends_on_its_section_of_the_composed_configuration(stage):
    assert params(stage) == ({stage} if stage in STAGE_NAMES else set())


@pytest.mark.parametrize("stage", PACKAGES)
def test_a_stage_depends_on_the_versions_of_the_packages_that_compute_in_it(stage):
    files = computing_files(script(stage))
    if stage == "train":  # and the classes that conf/ names
        files |= {path for path in FILES if package_of(path) in ("models", "training")}
    imported = {IMPORTED_AS.get(name, name) for path in files for name in imported_packages(path)}
    imported -= {PACKAGE, *sys.stdlib_module_names, *NOT_COMPUTING_PACKAGES, *UNUSED.get(stage, ())}
    assert imported == set(PACKAGES[stage])
    recorded = yaml.safe_load((ROOT / "composed.yaml").read_text())[stage]["versions"]
    # With images of one's own, `preprocess` depends on pillow-heif too.
    assert list(PACKAGES[stage]) == [name for name in recorded if name != "pillow-heif"]


def test_reading_a_key_of_another_stage_is_an_error(project):
    config = project.compose()
    with pytest.raises(OmegaConfBaseException, match="num_error_images"):
        restrict_to_stage(config, "train").evaluation.num_error_images  # noqa: B018
    with pytest.raises(OmegaConfBaseException, match="mirrors"):
        restrict_to_stage(config, "preprocess").data.mirrors  # noqa: B018
    assert restrict_to_stage(config, "train").trainer.devices == config.trainer.devices
    assert restrict_to_stage(config, "evaluate").runtime == config.runtime


def test_the_composed_file_has_the_section_of_each_stage():
    assert list(yaml.safe_load((ROOT / "composed.yaml").read_text())) == list(STAGE_NAMES)


def test_stages_take_and_give_the_same_files():
    """A stage's inputs are outputs of another stage, or files written by users."""
    written = {path for stage in STAGES.values() for path in outputs(stage)}
    for name, stage in STAGES.items():
        inputs = {path for path in stage["deps"] if not path.startswith("src/")}
        assert inputs <= written | {"conf", "constraints.txt", "params.yaml", "pretrained", "${image_dir}"}, name


def test_every_output_survives_until_it_is_replaced():
    for name, stage in STAGES.items():
        for path, options in outputs(stage).items():
            assert options.get("persist") is True, f"{name}: DVC would delete {path} before the stage runs"


def outputs(stage: dict) -> dict[str, dict]:
    return {path: options for entry in [*stage["outs"], *stage.get("metrics", [])] for path, options in entry.items()}


def computing_packages(start: Path) -> set[str]:
    """Return the packages whose code contributes to a script's result."""
    return {package_of(path) for path in computing_files(start)} - {"", "__init__"}


def computing_files(start: Path) -> set[Path]:
    """Return the files that contribute to a script's result, itself included, by following imports."""
    seen, queue = set(), [start]
    while queue:
        path = queue.pop()
        if path not in seen and package_of(path) not in NON_RESULT_PACKAGES:
            seen.add(path)
            queue += imported_files(path)
    return seen
