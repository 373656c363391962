"""`make adopt`: one commit with the new name and README, nothing left of CIFAR-10's story, refusals without traces."""

import re
import shutil
import subprocess
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from clones import NAME, Adopted, Repository, assert_checks_pass

from adopt import adopt
from cifar_pipeline.adoption import adopt as adoption
from cifar_pipeline.adoption.plan import ALWAYS, RECORD, Plan, Record, read_changes
from cifar_pipeline.adoption.repository import files_of, tree_of
from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.schema import validate
from helpers import docs
from helpers.config_project import run
from helpers.docs import SHELL_ENV
from helpers.workspace import PERSON

# Where `git grep -i cifar` may find more than the library's name: its code, tests and reference, the data options, and
# the options of networks and recipes that name their source.
ALLOWED = ("src/", "tests/", "docs/", "conf/", "composed.yaml", "LICENSE", "Makefile", "pyproject.toml")
WORDS = ["cifar", "benchmarks", "notebooks", "chinese"]


def test_one_commit_changes_what_the_dry_run_lists(adopted: Adopted, upstream: Repository) -> None:
    repository = adopted.repository
    listed = [line.split() for line in adopted.dry_run.splitlines() if line.startswith(("remove ", "write "))]
    changed = repository.git("diff", "--name-status", "--no-renames", "HEAD~1", "HEAD").splitlines()
    verbs = {"D": "remove", "A": "write", "M": "write"}
    assert listed == [[verbs[letter], path] for letter, path in (line.split("\t") for line in changed)]
    assert f"{len(listed)} files would change" in adopted.dry_run
    assert repository.git("rev-parse", "HEAD~1") == upstream.git("rev-parse", "HEAD")
    assert repository.state()[1] == ""
    assert f"This project is {NAME}, in commit {repository.git('rev-parse', 'HEAD')[:10]}" in adopted.output
    assert "There are no images in images/" in adopted.output and "CIFAR-10" in adopted.output
    assert "params.yaml" not in changed and not (repository.root / "benchmarks").exists()


def test_every_listed_path_exists(upstream: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(upstream.root)
    files = files_of("HEAD")
    changes = read_changes(files)
    assert changes.words() == WORDS and set(chain(*changes.needs.values(), changes.needs)) <= set(WORDS)
    for path in (*chain(*changes.remove.values()), *changes.write, *changes.rename, *changes.generate):
        assert path in files or any(file.startswith(path) for file in files if path.endswith("/")), path
    assert set(changes.generate.values()) <= set(files)
    for path in changes.rename:
        assert "cifar-pipeline" in upstream.read(path), path


def test_cifar_is_found_only_in_the_library_and_its_options(adopted: Adopted) -> None:
    lines = adopted.repository.git("grep", "-in", "cifar").splitlines()
    assert lines
    for line in lines:
        path, _, text = line.split(":", 2)
        assert path.startswith(ALLOWED) or "cifar" not in text.replace("cifar_pipeline", "").lower(), line
    (target,) = [line for line in lines if re.match(r"Makefile:\d+:\w+: ", line)]
    assert "cifar10:" in target


def test_name_and_version_are_the_projects_everywhere(adopted: Adopted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adopted.repository.root)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert compose_config([]).mlflow.experiment_name == NAME
    pyproject = adopted.repository.read("pyproject.toml")
    assert re.findall(r'^(?:name|version) = "(.*)"', pyproject, re.MULTILINE) == [NAME, "0.1.0"]
    assert f'"{NAME}[heif,loggers]"' in pyproject
    assert f'"name": "{NAME}"' in adopted.repository.read(".devcontainer/devcontainer.json")
    assert adopted.repository.read("Dockerfile").count(f"/home/person/{NAME}") == 3


def test_the_readme_is_short_and_what_it_says_works(adopted: Adopted, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = adopted.repository
    monkeypatch.chdir(repository.root)
    text = repository.read("README.md")
    assert text.startswith(f"# {NAME}\n") and len(text.splitlines()) < 80
    assert "%" not in text and "![" not in text and "<img" not in text and "{" not in text
    assert all((repository.root / link).exists() for link in docs.links(text) if not link.startswith("https:"))
    for file in re.findall(r"`([\w/]+/|[\w.]+\.yaml)`", text):
        assert (repository.root / file).exists() or file in (
            "exported/",
            "images/",
            "images/roses/",
            "images/tulips/",
            "more/",
        ), file
    targets = re.findall(r"^make (\S+)", repository.run("make", "help"), re.MULTILINE)
    typed = docs.commands(text)
    assert len(typed) > 8
    for command in typed:
        program, *arguments = command.split()
        if program == "make":
            assert not arguments or arguments[0] in targets, command
        elif program != "source":
            script = next((word for word in arguments if word.endswith(".py")), "src/train.py")
            assert (repository.root / script).is_file(), command
            overrides = [word.replace("++overrides.", "") for word in arguments if "=" in word and word != "-m"]
            validate(compose_config([override.partition(",")[0] for override in overrides]))


def test_both_readmes_have_the_same_content(clone: Repository) -> None:
    record = record_of(clone, ["chinese"])
    for has_images in (True, False):
        written = Plan.of("HEAD", record).written(record, has_images)
        english, chinese = written["README.md"], written["README.zh-CN.md"]
        for parts in (docs.headings, docs.spans, docs.commands, docs.links):
            kept = [
                [part[0] if parts is docs.headings else part for part in parts(page)] for page in (english, chinese)
            ]
            assert sorted(map(str, kept[0])) == sorted(map(str, kept[1])), parts


def comparable(parts: list[Any]) -> list[str]:
    """Return parts of a page as sorted text; of a heading, its level."""
    return sorted(str(part[0]) if isinstance(part, tuple) else part for part in parts)


def record_of(repository: Repository, keep: list[str]) -> Record:
    changes = read_changes(files_of("HEAD"))
    return Record(name=NAME, keep=changes.kept(keep), commit=repository.git("rev-parse", "HEAD"), tree=tree_of("HEAD"))


@pytest.mark.parametrize("word", [*WORDS, "benchmarks,notebooks"])
def test_what_is_kept_stays_with_what_it_needs(clone: Repository, word: str) -> None:
    changes = read_changes(files_of("HEAD"))
    keep = changes.kept(word.split(","))
    assert keep == tuple(each for each in WORDS if each in word or (each == "cifar" and "benchmarks" in word))
    plan = Plan.of("HEAD", record_of(clone, word.split(",")))
    gone = {entry for each in (ALWAYS, *WORDS) if each not in keep for entry in changes.remove[each]}
    assert {path for path in clone.files() if path in gone or path.startswith(tuple(gone))} >= plan.removed
    stays = [entry for each in keep for entry in changes.remove[each]]
    assert stays and not any(path.startswith(tuple(stays)) for path in plan.removed)


def without_scripts(changes: object, folder: Path) -> None:
    """Leave the generated files as they are, because the scripts that make them take seconds."""


def test_with_images_the_project_trains_on_them(clone: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "generate", without_scripts)
    (clone.root / "images" / "roses").mkdir(parents=True)
    clone.write("images/roses/1.jpg", "")
    (clone.root / ".venv").mkdir()
    clone.write(".venv/.set-up", "")
    ended = run(adopt, NAME)
    assert not ended.code, ended.err
    assert "`make` trains on the images in images/" in ended.out
    assert "\nexperiment: finetune\n" in clone.read("params.yaml") and "no images yet" not in clone.read("README.md")
    assert compose_config([]).data.source._target_.endswith("ImageFolder")
    # Nothing is to be installed for another name.
    assert (clone.root / ".venv/.set-up").stat().st_mtime >= (clone.root / "pyproject.toml").stat().st_mtime


def dirty(clone: Repository) -> None:
    clone.write("LICENSE", "Mine")


def detached(clone: Repository) -> None:
    clone.git("checkout", "--quiet", "--detach")


def conflict(clone: Repository) -> None:
    for branch, text in (("other", "a"), ("main", "b")):
        clone.git("switch", "--quiet", "--force-create", branch, "origin/main")
        clone.write("LICENSE", text)
        clone.commit_all(branch)
    clone.git("merge", "other", code=1)


def without_identity(clone: Repository) -> None:
    clone.git("config", "user.useConfigOnly", "true")
    clone.git("config", "--unset", "user.email")


def without_git(clone: Repository) -> None:
    (clone.root / ".git").rename(clone.root.parent / "elsewhere")


def without_a_commit(clone: Repository) -> None:
    without_git(clone)
    clone.git("init", "--quiet")


def in_a_larger_repository(clone: Repository) -> None:
    without_git(clone)
    subprocess.run(["git", "init", "--quiet", ".."], check=True)
    subprocess.run(["git", *PERSON, "-C", "..", "commit", "--quiet", "--allow-empty", "-m", "start"], check=True)


def adopted_before(clone: Repository) -> None:
    clone.write(RECORD.name, record_of(clone, []).text())
    clone.commit_all("Adopt")


def unchanged(clone: Repository) -> None:
    pass


NO_NAMES = [
    " ", "2flowers", "my flowers", "-flowers", "flowers.", "花", "a/b", "null", "True", "nan", 101 * "a",
]  # fmt: skip
REFUSALS: dict[str, tuple[Callable[[Repository], None], list[str], list[str]]] = {
    "uncommitted changes": (dirty, [NAME], ["uncommitted changes (LICENSE)", "git stash"]),
    "detached": (detached, [NAME], ["HEAD is on no branch", "git switch"]),
    "unfinished merge": (conflict, [NAME], ["A merge is unfinished", "git merge --abort"]),
    "no identity": (without_identity, [NAME], ["git config user.email"]),
    "no git": (without_git, [NAME], ["not the root of a git repository", "git init"]),
    "no commit": (without_a_commit, [NAME], ["with a commit"]),
    "a larger repository": (in_a_larger_repository, [NAME], ["not the root of a git repository"]),
    "adopted": (adopted_before, ["birds"], [f"was adopted as {NAME} before", "make update"]),
    "an unknown word": (unchanged, [NAME, "--keep", "cifar,docs"], ["--keep docs", ", ".join(WORDS)]),
    "no name": (unchanged, [], ["Which name?", "make adopt NAME=flowers"]),
    "a needed package's name": (unchanged, ["Scikit_Learn"], ["Scikit_Learn is the name of a package"]),
    "this project's name": (unchanged, ["cifar.pipeline"], ["cifar.pipeline is the name of a package"]),
}


@pytest.mark.parametrize(("change", "arguments", "fragments"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_is_one_sentence_and_changes_nothing(
    clone: Repository, change: Callable[[Repository], None], arguments: list[str], fragments: list[str]
) -> None:
    change(clone)
    before = None if (change is without_git or change is without_a_commit) else clone.state()
    run(adopt, *arguments).assert_refused(*fragments)
    assert before is None or clone.state() == before
    assert RECORD.exists() == (change is adopted_before)


def test_names_that_are_none_are_refused_in_one_sentence(clone: Repository) -> None:
    before = clone.state()
    for name in NO_NAMES:
        run(adopt, "--", name).assert_refused(repr(name), "begin with a letter")
    assert clone.state() == before and not RECORD.exists()


def test_questions_are_asked_in_a_terminal(clone: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "generate", without_scripts)
    before, answers = clone.state(), iter([NAME, "", "n", NAME, "notebooks", "y"])
    monkeypatch.setattr("builtins.input", lambda question: next(answers))
    monkeypatch.setattr("adopt.is_terminal", lambda: True)
    ended = run(adopt)
    assert "Nothing was changed" in ended.out and "remove README.zh-CN.md" in ended.out and clone.state() == before
    run(adopt)
    assert (clone.root / "notebooks" / "01-by-hand.ipynb").exists() and RECORD.exists()


def test_make_passes_its_own_dry_run_on_and_takes_no_name_from_the_environment(tmp_path: Path) -> None:
    shutil.copy(docs.ROOT / "Makefile", tmp_path)
    (tmp_path / "src").mkdir()
    for script in ("adopt", "update"):
        (tmp_path / "src" / f"{script}.py").write_text("import sys\nprint('given', *sys.argv[1:])\n")

    def given(*words: str, **variables: str) -> list[str]:
        command = ["make", "--old-file=.venv/.set-up", *words]
        ended = subprocess.run(
            command, cwd=tmp_path, env=SHELL_ENV | variables, capture_output=True, text=True, check=True
        )
        return [line.removeprefix("given").strip() for line in ended.stdout.splitlines() if line.startswith("given")]

    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".set-up").touch()
    assert given("adopt", "NAME=my flowers", "KEEP=cifar") == ["my flowers --keep cifar"]
    assert given("adopt", "NAME=x", "--dry-run") == ["x --dry-run"] and given("adopt", "--no-print-directory") == [""]
    assert given("adopt", NAME="computer") == [""]
    assert given("update", "UPSTREAM=u") == ["u"] and given("update") == [""]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_runs_of_a_training_are_in_the_projects_experiment(adopted: Adopted, tmp_path: Path) -> None:
    project = adopted.repository.clone(tmp_path / "project")
    project.set_params(data="digits", experiment="debug")
    project.dvc("repro")
    experiment = project.mlflow.get_experiment_by_name(NAME)
    assert experiment is not None
    (entry,) = project.mlflow.search_runs([experiment.experiment_id])
    assert entry.info.status == "FINISHED"
    assert project.mlflow.get_experiment_by_name("cifar-pipeline") is None


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_checks_and_the_tests_of_files_pass_afterwards(adopted: Adopted, tmp_path: Path) -> None:
    project = adopted.repository.clone(tmp_path / "project")
    assert_checks_pass(project)
