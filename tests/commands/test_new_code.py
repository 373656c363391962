"""`python src/new.py` writes code, options and tests that work as they are, or nothing and one sentence."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cifar_pipeline.cli.new_code import KINDS, TAKEN, render, snake_case
from cifar_pipeline.config import dvc_inputs
from cifar_pipeline.config.compose import compose_config, fingerprint, stage_targets
from cifar_pipeline.config.source_files import SourceTree
from cifar_pipeline.training.metrics import BUILT_IN_NAMES
from helpers.config_project import ROOT, Project, run
from helpers.workspace import Workspace, make_repository, stages_that, workspace_of_tree
from new import new

NAMES = {
    "model": "Tiny", "loss": "Tiny", "optimizer": "SignSGD", "scheduler": "Ramp", "callback": "WeightNorm",
    "metric": "Sure", "augmentation": "Brighten", "source": "Stripes",
}  # fmt: skip
OPTIONS = [
    "model=tiny", "loss=tiny", "optimizer=sign_sgd", "scheduler=ramp", "callbacks=weight_norm", "metrics=sure",
    "augmentation=brighten",
]  # fmt: skip


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace with an example of each kind."""
    workspace = workspace_of_tree(tmp_path_factory.mktemp("own"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workspace.root)
        for kind, name in NAMES.items():
            ended = run(new, kind, name)
            assert ended.code is None, ended.err
    return workspace


@pytest.fixture
def folder(project: Project) -> Project:
    """A project with the folders that new.py writes to."""
    for path in ("src/project", "tests/project"):
        shutil.copytree(ROOT / path, project.folder / path, ignore=shutil.ignore_patterns("__pycache__", "test_*"))
    return project


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that no test changes: each of them is refused."""
    project = Project.made(tmp_path_factory.mktemp("unchanged"))
    shutil.copytree(ROOT / "src" / "project", project.folder / "src" / "project")
    return project


def files(project: Project) -> dict[str, str]:
    paths = (path for path in project.folder.rglob("*") if path.is_file())
    return {path.relative_to(project.folder).as_posix(): path.read_text() for path in paths}


def test_every_kind_is_tried() -> None:
    assert list(NAMES) == list(KINDS)


def test_the_code_is_formatted_and_without_errors_of_style(extended: Workspace) -> None:
    extended.run("ruff", "format", "--check")
    extended.run("ruff", "check")


@pytest.mark.long
def test_the_code_has_no_errors_of_type(extended: Workspace) -> None:
    extended.run("mypy", "src/project")


# Tests of the library that read conf/ or src/ as a whole; what is the user's own must not make them fail.
OF_ALL_OPTIONS = (
    "tests/config/test_schemas.py::test_the_page_is_up_to_date",
    "tests/config/test_schemas.py::test_the_page_has_every_key_and_every_option",
    "tests/test_layout.py::test_there_are_few_modules_of_a_fair_size",
    "tests/training/test_losses.py::test_every_loss_of_conf_has_its_formula_here",
    "tests/training/test_optimizers.py::test_every_optimizer_of_conf_is_tested_here",
    "tests/inference/test_every_network.py::test_every_option_is_tested",
)


@pytest.mark.long
def test_the_tests_that_are_written_pass(extended: Workspace) -> None:
    said = extended.run("python", "-m", "pytest", "-n", "0", "-q", "tests/project", *OF_ALL_OPTIONS)
    assert re.search(r"^\d+ passed", said, re.MULTILINE)
    written = {path.name for path in (extended.root / "tests" / "project").glob("test_*.py")}
    assert written == {f"test_{kind}_{snake_case(name)}.py" for kind, name in NAMES.items()}


def test_the_page_of_all_options_has_the_new_ones(extended: Workspace) -> None:
    page = extended.read("docs/configuration.md")
    assert "[`sign_sgd`](../conf/optimizer/sign_sgd.yaml)" in page and "[`stripes`](../conf/data/stripes.yaml)" in page


@pytest.mark.long
def test_all_of_them_train_in_the_pipeline_and_dvc_tracks_their_code(extended: Workspace, tmp_path: Path) -> None:
    root = tmp_path / "copy"
    shutil.copytree(extended.root, root)
    copy = Workspace(root)
    make_repository(copy)
    # The command that is printed for a data set makes its data itself.
    copy.train("-m", "data=stripes", "experiment=debug")
    assert copy.runs()[-1].data.tags["dataset"] == "stripes"
    assert not (root / "data" / "processed").exists()
    options = {group: option for group, _, option in (word.partition("=") for word in OPTIONS)}
    copy.set_params(experiment="debug", data="stripes", **options)
    assert stages_that(copy.dvc("repro", "train"), "ran") == ["configure", "download", "preprocess", "train"]
    trained = copy.runs()[-1]
    assert (trained.info.run_name, trained.info.status) == ("debug-sign_sgd-tiny-0", "FINISHED")
    assert {"train/weight_norm", "val/sure"} <= trained.data.metrics.keys()
    assert trained.data.params["scheduler._target_"] == "project.schedulers.ramp.ramp"
    copy.write("src/project/models/tiny.py", copy.read("src/project/models/tiny.py") + "\n# edited\n")
    changed = copy.dvc("status", "train", "download")
    assert "src/project" in changed and "download" not in changed


def test_dvc_accepts_the_code_as_tracked(extended: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(extended.root)
    monkeypatch.setattr(dvc_inputs, "SOURCE", extended.root / "src")
    monkeypatch.setattr(dvc_inputs, "loaded_sources", lambda: SourceTree(extended.root / "src"))
    config = compose_config([*OPTIONS, "data=stripes"])
    assert stage_targets(config, "preprocess") == ["project.data.stripes.Stripes"]
    for stage in ("preprocess", "train"):
        stages = yaml.safe_load(extended.read("dvc.yaml"))["stages"][stage]["deps"]
        tracked = [(extended.root / path).resolve() for path in stages if isinstance(path, str)]
        for target in stage_targets(config, stage):
            dvc_inputs._require_tracked(target, stage, tracked)


def test_an_edit_of_the_code_changes_the_fingerprint(
    extended: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(extended.root / "src", tmp_path / "src")
    monkeypatch.chdir(extended.root)
    config = compose_config(OPTIONS)
    assert set(stage_targets(config, "train")) > {"project.models.tiny.Tiny", "project.losses.tiny.Tiny"}
    before = fingerprint(config, "data", SourceTree(tmp_path / "src"))
    for kind, name in NAMES.items():
        if kind != "source":
            path = tmp_path / "src" / "project" / KINDS[kind].package / f"{snake_case(name)}.py"
            path.write_text(f"{path.read_text()}\n# edited\n")
            after = fingerprint(config, "data", SourceTree(tmp_path / "src"))
            assert after != before, kind
            before = after


@pytest.mark.parametrize("kind", KINDS)
def test_it_names_what_it_wrote_and_the_command_that_tries_it(folder: Project, kind: str) -> None:
    ended = run(new, kind, "MyHTTPNet2")
    assert (ended.code, ended.err) == (None, "")
    wrote = re.findall(r"^Wrote (\S+)$", ended.out, re.MULTILINE)
    assert wrote == [str(path) for path in render(kind, "MyHTTPNet2")]
    assert all((folder.folder / path).is_file() for path in wrote)
    multirun = "-m " if kind == "source" else ""
    choice = f"{KINDS[kind].group}=my_http_net2"
    assert f"Try it:  python src/train.py {multirun}{choice} experiment=debug\n" in ended.out
    assert f"Test it: python -m pytest tests/project/test_{kind}_my_http_net2.py\n" in ended.out
    assert [*yaml.safe_load(f"{{{choice.replace('=', ': ')}}}").values()] == ["my_http_net2"]
    folder.compose(choice)


def test_the_command_uses_the_data_of_the_project(folder: Project) -> None:
    folder.edit("params.yaml", "experiment: tutorial", "experiment: finetune")
    assert (
        "Try it:  python src/train.py -m loss=tiny experiment=debug data=image_folder\n" in run(new, "loss", "Tiny").out
    )


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["modle", "Tiny"], ["There is no kind modle; did you mean `model`?"]),
        (["thing", "Tiny"], ["There is no kind thing; allowed are model, loss, optimizer,"]),
        (["dataset", "Tiny"], ["There is no kind dataset: write `python src/new.py source Tiny`."]),
        (["Model", "Tiny"], ["write `python src/new.py model Tiny`"]),
        (["logger", "Tiny"], ["a logger of Lightning needs only its file in conf/logger/"]),
        (["model"], ["The name of the class is missing", "`python src/new.py model Tiny`"]),
        (["model", "tiny"], ["write `python src/new.py model Tiny`"]),
        (["model", "tiny_net"], ["write `python src/new.py model TinyNet`"]),
        (["model", "my-net.v2"], ["write `python src/new.py model MyNetV2`"]),
        (["model", "../Tiny"], ["write `python src/new.py model Tiny`"]),
        (["model", "1Tiny"], ["1Tiny cannot be the name", "an upper-case letter and then letters and digits"]),
        (["model", "Größe"], ["Größe cannot be the name", "of ASCII; write `python src/new.py model Tiny`"]),
        (["model", "T\x1b[2J"], ["T\\x1b[2J cannot be the name"]),
        (["model", "None"], ["None is a word of Python"]),
        (["model", "Class"], ["Class is a word of Python", "such as MyClass"]),
        (["model", "ValueError"], ["ValueError is a word of Python"]),
        (["model", "Null"], ["`model=null` does not name a file", "such as MyNull"]),
        (["optimizer", "No"], ["`optimizer=no` does not name a file"]),
        (["loss", "Inf"], ["`loss=inf` does not name a file"]),
        (["model", "A" * 31], ["is too long: choose a name of at most 30 characters"]),
        (["model", "Tensor"], ["itself uses the name Tensor", "such as MyTensor"]),
        (["callback", "Callback"], ["src/project/callbacks/callback.py itself uses the name Callback"]),
        (["scheduler", "Train"], ["itself uses the name train"]),
        (["metric", "Accuracy"], ["accuracy is always measured and logged"]),
        (["callback", "Loss"], ["loss is always measured and logged"]),
        (["model", "Lenet"], ["conf/model/lenet.yaml exists already, so nothing was written"]),
        (["source", "Digits"], ["conf/data/source/digits.yaml and conf/data/digits.yaml exist already"]),
    ],
)  # fmt: skip
def test_what_cannot_be_written_is_refused_in_a_sentence(
    unchanged: Project, monkeypatch: pytest.MonkeyPatch, arguments: list[str], fragments: list[str]
) -> None:
    monkeypatch.chdir(unchanged.folder)
    before = set(unchanged.folder.rglob("*"))
    run(new, *arguments).assert_refused(*fragments)
    assert set(unchanged.folder.rglob("*")) == before


def test_nothing_is_overwritten_or_written_beside(folder: Project) -> None:
    for path in render("model", "Tiny"):
        folder.write(str(path), "mine")
        before = files(folder)
        run(new, "model", "Tiny").assert_refused(f"{path} exists already, so nothing was written")
        assert files(folder) == before
        (folder.folder / path).unlink()
    (folder.folder / "src/project/models/tiny.py").symlink_to("nowhere")
    run(new, "model", "Tiny").assert_refused("src/project/models/tiny.py exists already")


def test_what_is_in_the_way_is_named(folder: Project) -> None:
    folder.write("src/project/optimizers.py", "")
    run(new, "optimizer", "Tiny").assert_refused("src/project/optimizers.py is in the way of the folder")
    folder.write("tests/models/test_model_tiny.py", "")
    run(new, "model", "Tiny").assert_refused("tests/models/test_model_tiny.py has the name of the new test")


def test_a_failure_in_between_leaves_nothing(folder: Project) -> None:
    folder.write("docs/configuration.md", "the page")
    folder.write("conf/model/broken.yaml", "[")
    before = files(folder)
    run(new, "model", "Tiny").assert_refused("conf/model/broken.yaml, line 1, is not valid YAML")
    assert files(folder) == before


def test_another_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run(new, "model", "Tiny").assert_refused("run this from the project's root folder")


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_without_arguments_it_says_in_a_screen_what_it_does(arguments: list[str]) -> None:
    ended = run(new, *arguments)
    assert ended.code in (None, 0) and len(ended.out.splitlines()) <= 40
    assert all(f"src/project/{kind.package}/" in ended.out for kind in KINDS.values())
    assert "python src/new.py model Tiny" in ended.out


def test_names_that_the_pipeline_measures_are_known() -> None:
    assert set(BUILT_IN_NAMES) <= set(TAKEN["metrics"])


def test_the_script_is_started_as_it_is_typed(project: Project) -> None:
    ended = subprocess.run(
        [sys.executable, str(ROOT / "src" / "new.py"), "modle", "Tiny"], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (2, "") and ended.stderr.startswith("There is no kind modle")
