"""conf/local/default.yaml and .env: what this machine sets, what is refused, and that no result and no text has it."""

import json
import os
import re
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from cifar_pipeline.cli.entrypoint import run_script
from cifar_pipeline.config.compose import NON_RESULT_GROUPS, NON_RESULT_KEYS, fingerprint, recorded_config
from cifar_pipeline.config.local_settings import GROUPS, KEYS, load_environment, read_settings
from cifar_pipeline.utils import text
from configure import configure
from helpers.config_project import ROOT, Project, started
from new import new
from train import train

FILE = "conf/local/default.yaml"


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin without declared secrets, and restore the environment."""
    monkeypatch.setattr(text, "_declared", {})
    for name in ("MLFLOW_TRACKING_URI", "CIFAR10_SOURCE", "LOG_LEVEL", "PLAIN"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def example(project: Project) -> Project:
    """A project whose settings are those of the example."""
    project.write(FILE, (ROOT / "conf" / "local" / "example.yaml").read_text())
    return project


def composed(project: Project, *overrides: str) -> OmegaConf:
    """Return the configuration of a command line with Hydra's own part."""
    ended = project.start(train, *overrides, "--cfg", "all")
    assert ended.code == 0, ended.err
    return OmegaConf.create(ended.out)


def test_the_example_sets_threads_loggers_and_the_launcher(example: Project) -> None:
    config = composed(example)
    assert (config.runtime.threads, list(config.logger)) == (2, ["csv"])
    assert config.hydra.launcher._target_.endswith("JoblibLauncher") and config.hydra.launcher.n_jobs == 4


def test_the_command_line_comes_first_then_this_machine_then_params(example: Project) -> None:
    example.edit("params.yaml", "overrides: {}", "overrides: {runtime: {threads: 3, accelerator: cpu}}")
    assert example.compose().runtime.threads == 2
    assert example.compose().runtime.accelerator == "cpu"
    assert example.compose("runtime.threads=5").runtime.threads == 5
    assert list(example.compose("logger=[]").logger) == []


def test_another_launcher_does_not_get_the_values_of_this_one(example: Project) -> None:
    launcher = composed(example, "launcher=submitit_local").hydra.launcher
    assert launcher._target_.endswith("LocalLauncher") and "n_jobs" not in launcher
    assert composed(example, "launcher=joblib", "hydra.launcher.n_jobs=3").hydra.launcher.n_jobs == 3


def test_a_single_run_may_have_a_launcher_from_here_and_none_from_the_command_line(example: Project) -> None:
    assert example.start(configure).code == 0
    example.start(train, "launcher=joblib").assert_refused("launcher=joblib is for sweeps only")


def test_what_is_recorded_is_the_same_on_every_machine(example: Project) -> None:
    assert example.start(configure).code == 0
    here = (example.folder / "composed.yaml").read_bytes()
    digest = fingerprint(example.compose(), "data")
    (example.folder / FILE).unlink()
    assert example.start(configure).code == 0
    assert (example.folder / "composed.yaml").read_bytes() == here
    assert fingerprint(example.compose(), "data") == digest


def test_what_may_be_set_changes_no_result() -> None:
    assert set(GROUPS) < set(NON_RESULT_GROUPS) and set(KEYS) < set(NON_RESULT_KEYS)


def test_git_and_dvc_ignore_it_and_the_example_is_committed() -> None:
    ignored = subprocess.run(
        ["git", "check-ignore", FILE, ".env", ".env.production", "conf/local/example.yaml", ".env.example"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    ).stdout.split()  # fmt: skip
    assert ignored == [FILE, ".env", ".env.production"]
    assert "/conf/local/" in (ROOT / ".dvcignore").read_text().splitlines()


def test_a_temporary_workspace_reads_the_settings_of_the_main_one(
    example: Project, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    example.write(".env", "PLAIN=from the main workspace\n")
    temporary = Project.made(tmp_path_factory.mktemp("temporary"))
    monkeypatch.chdir(temporary.folder)
    assert temporary.compose().runtime.threads != 2
    monkeypatch.setenv("DVC_ROOT", str(example.folder))
    assert temporary.compose().runtime.threads == 2
    load_environment()
    assert os.environ["PLAIN"] == "from the main workspace"


def test_paths_are_the_variables_that_are_not_set(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    project.write(FILE, "paths: {tracking_uri: 'http://127.0.0.1:9', cifar10: data set}\n")
    load_environment()
    assert os.environ["MLFLOW_TRACKING_URI"] == "http://127.0.0.1:9"
    assert os.environ["CIFAR10_SOURCE"] == str(project.folder / "data set")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    project.write(".env", "CIFAR10_SOURCE=/elsewhere\n")
    monkeypatch.delenv("CIFAR10_SOURCE")
    load_environment()
    assert (os.environ["MLFLOW_TRACKING_URI"], os.environ["CIFAR10_SOURCE"]) == ("", "/elsewhere")


@pytest.mark.parametrize("content", ["", "# nothing\n", "runtime: null\n", "runtime: {}\n", "---\n"])
def test_nothing_may_be_set(project: Project, content: str) -> None:
    project.write(FILE, content)
    assert {key: value for key, value in read_settings().items() if value} == {}
    assert project.compose() == project.compose()


@pytest.mark.parametrize(
    ("content", "fragments"),
    [
        ("optimizer: {lr: 0.1}", ["optimizer.lr must be the same on every machine", "params.yaml"]),
        ("optimizer: adam", ["optimizer must be the same on every machine"]),
        ("seed: 1", ["seed must be the same on every machine"]),
        ("trainer: {batch_size: 4}", ["trainer.batch_size must be the same on every machine"]),
        ("trainer: {deterministic: true}", ["trainer.deterministic must be the same on every machine"]),
        ("evaluation: {batch_size: 4}", ["evaluation.batch_size must be the same on every machine"]),
        ("data: {mirrors: []}", ["data.mirrors must be the same on every machine"]),
        ("registry: {name: mine}", ["registry.name must be the same on every machine"]),
        ("rerun: true", ["rerun must be the same on every machine"]),
        ("overrides: {runtime: {threads: 2}}", ["overrides.runtime.threads must be the same"]),
        ("image_dir: /data", ["`image_dir` is also read by dvc.yaml"]),
        ("runtime: {thread: 2}", ["runtime has no key `thread`; did you mean `threads`?"]),
        ("runtme: {threads: 2}", ["unknown key `runtme.threads`"]),
        ("runtime: 2", ["`runtime` must be a mapping of its keys, not 2"]),
        ("launcher: jobs", ["conf/launcher/ has no jobs; did you mean `joblib`?"]),
        ("launcher: [joblib]", ["`launcher` must be the name of a file in conf/launcher/"]),
        ("logger: [3]", ["`logger` must be the name of a file in conf/logger/, not 3"]),
        ("logger: {csv: {save_dir: x}}", ["`logger` must be the name of a file"]),
        ("hydra: {launcher: {n_jobs: 2}}", ["add `launcher: NAME`"]),
        ("hydra: {run: {dir: x}}", ["unknown key `hydra.run.dir`"]),
        ("defaults: [override /launcher: joblib]", ["`defaults` is not read here: write `launcher: joblib`"]),
        ("paths: {cache: /tmp}", ["paths has no key `cache`; allowed are tracking_uri, cifar10,"]),
        ("paths: {cifar10: 3}", ["paths.cifar10 must be a path or a URL, not 3"]),
        ("- runtime", ["must be a mapping, such as `runtime: {threads: 2}`"]),
        ("threads", ["unknown key `threads`"]),
        ("runtme:", ["unknown key `runtme`; did you mean `runtime`?"]),
        ("3", ["must be a mapping, such as"]),
        ("runtime: {threads: 2", ["line 1, is not valid YAML"]),
    ],
)
def test_what_does_not_belong_there_is_refused_in_a_sentence_with_the_file(
    project: Project, content: str, fragments: list[str]
) -> None:
    project.write(FILE, content)
    project.start(configure).assert_refused(FILE, *fragments)


def test_an_invalid_value_names_its_key(project: Project) -> None:
    project.write(FILE, "runtime: {threads: many}")
    project.start(configure).assert_refused("runtime.threads=many is not allowed")


@pytest.mark.parametrize("argument", ["launcher=null", "sweep=null", "launcher=3"])
def test_a_group_of_sweeps_is_chosen_by_name_only(project: Project, argument: str) -> None:
    project.start(train, "-m", argument).assert_refused("has no file of this name; allowed are")


# What a script prints about its environment: unchanged, as an error, and in a child process.
SHOWN = """
import os, subprocess, sys
from cifar_pipeline.cli.entrypoint import run_script
from cifar_pipeline.utils.errors import UserError
def show():
    print(subprocess.check_output([sys.executable, "-c", "import os; print(os.environ['PLAIN'][::-1])"], text=True))
    raise (UserError if sys.argv[1] == "user" else ValueError)(f"it is {os.environ['PLAIN']}")
run_script(show)
"""


@pytest.mark.parametrize("kind", ["user", "bug"])
def test_every_entry_point_passes_the_variables_on_and_writes_their_values_nowhere(project: Project, kind: str) -> None:
    project.write(".env", "# a comment\nexport PLAIN='correct horse # battery'\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", SHOWN, kind]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "correct horse # battery"[::-1]
    assert "it is ***" in ended.stderr and "horse" not in ended.stderr


def test_a_variable_that_is_set_has_priority_and_is_a_secret_too(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLAIN", "of the shell")
    project.write(".env", "PLAIN=of the file\n")
    load_environment()
    assert os.environ["PLAIN"] == "of the shell"
    assert text.redact("of the shell, of the file") == "***, ***"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("http://me:hunter22@127.0.0.1:9", "at http://me:hunter22@127.0.0.1:9/api with hunter22"),
        ("https://hooks.example.org/T0/B0/hunter22", "https://hooks.example.org/T0/B0/hunter22 answers 404"),
        ('"-----BEGIN-----\nhunter22\n-----END-----"', "the line hunter22 of the key"),
    ],
)
def test_no_form_of_a_value_is_written(project: Project, value: str, said: str) -> None:
    project.write(".env", f"PLAIN={value}\n")
    load_environment()
    assert "hunter22" in os.environ["PLAIN"]
    assert "hunter22" not in text.redact(said)


def test_a_user_name_is_no_secret(project: Project) -> None:
    project.write(".env", "MLFLOW_TRACKING_USERNAME=pipeline\nMLFLOW_TRACKING_PASSWORD=hunter22\n")
    assert project.start(configure).code == 0
    load_environment()
    assert text.redact("cifar-pipeline of hunter22") == "cifar-pipeline of ***"


def test_a_word_of_the_configuration_is_refused_as_a_secret(project: Project) -> None:
    project.write(".env", "PLAIN=softmax\n")
    project.start(configure).assert_refused("loss.output_activation contains the value of PLAIN in .env", "the shell")
    project.write(".env", "PLAIN=pipeline\n")
    project.start(configure).assert_refused("contains the value of PLAIN in .env")
    assert not (project.folder / "composed.yaml").exists()


def test_a_value_that_reads_the_variable_may_contain_it(project: Project) -> None:
    project.write(".env", "MLFLOW_EXPERIMENT_NAME=flowers\n")
    assert project.start(configure).code == 0


def test_the_password_of_a_server_is_in_no_message(project: Project) -> None:
    project.write(".env", "MLFLOW_TRACKING_URI=ftp://me:hunter22@127.0.0.1:9/runs\n")
    ended = project.start(train, "data=digits")
    ended.assert_refused("MLFLOW_TRACKING_URI=")
    assert "hunter22" not in ended.err


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("GOOD=1\n\nhunter22\n", 3),
        ("GOOD=1\n# why\nPLAIN: hunter22\n", 3),
        ("PLAIN='hunter22\n", 1),
        ('PLAIN="hunter22" hunter22\n', 1),
        ("2PLAIN=hunter22\n", 1),
        ("\n\nPLAIN=hunter\0 22\n", 3),
    ],
)
def test_a_malformed_line_is_refused_with_its_number_and_without_its_content(
    project: Project, content: str, line: int
) -> None:
    project.write(".env", content)
    for stage in (configure, train):
        ended = project.start(stage)
        ended.assert_refused(f".env, line {line}, is not NAME=value")
        assert "hunter" not in ended.err
    ended = started(new, run_script, ["model", "Tiny"])
    ended.assert_refused(f".env, line {line}, is not NAME=value")


def test_a_file_that_cannot_be_read_is_refused(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.folder / ".env").mkdir()
    project.start(configure).assert_refused(".env is a folder", "rename the folder")
    (project.folder / ".env").rmdir()
    (project.folder / ".env").write_bytes(b"A=1\nPLAIN=hunter22\xff\n")
    project.start(configure).assert_refused(".env, line 2, is not UTF-8")
    (project.folder / ".env").unlink()
    (project.folder / ".env").symlink_to("nowhere")
    project.start(configure).assert_refused(".env cannot be read (no such file or directory)")
    (project.folder / FILE).parent.mkdir(exist_ok=True)
    (project.folder / ".env").unlink()
    (project.folder / FILE).write_bytes(b"# \xff\n")
    project.start(configure).assert_refused(f"{FILE}, line 1, is not UTF-8")
    (project.folder / FILE).unlink()
    (project.folder / FILE).mkdir()
    project.start(configure).assert_refused(f"{FILE} cannot be read (is a directory)")


def test_a_value_that_the_configuration_shows_is_masked(project: Project) -> None:
    project.write(".env", "PLAIN=hunter22\n")
    project.edit("params.yaml", "overrides: {}", "overrides: {mlflow: {description: '${oc.env:PLAIN}'}}")
    for options in ((), ("--resolve",)):
        ended = project.start(train, "--cfg", "job", *options)
        assert ended.code == 0 and "hunter22" not in ended.out
    assert "description: '***'" in ended.out or "description: ***" in ended.out


def test_the_example_of_variables_sets_none_and_is_read(project: Project) -> None:
    example = (ROOT / ".env.example").read_text()
    project.write(".env", example)
    assert not load_environment()
    project.write(".env", re.sub(r"^# (\w+=)", r"\1value", example, flags=re.MULTILINE))
    assert load_environment()


def test_a_value_of_env_in_what_is_recorded_is_masked(project: Project) -> None:
    project.write(".env", "PLAIN=hunter22\n")
    load_environment()
    config = project.compose("data.mirrors=['http://127.0.0.1:9/${oc.env:PLAIN}']")
    assert "hunter22" not in json.dumps(recorded_config(config)) and "***" in json.dumps(recorded_config(config))
