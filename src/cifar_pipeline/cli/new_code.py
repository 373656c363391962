"""Write the code, the files of conf/ and the test of a new option of the user's own, from the templates beside this.

All paths are checked before the first file is written, and a failure in between removes what was written.
"""

import ast
import builtins
import keyword
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cifar_pipeline.cli.documents import PAGE, write_documents
from cifar_pipeline.config.compose import compose_with_hydra
from cifar_pipeline.config.params import CONF, format_override, read_params, suggest, to_yaml_inline
from cifar_pipeline.config.source_files import PROJECT
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import escape_control

log = logging.getLogger(__name__)

TEMPLATES = Path(__file__).with_name("templates")
CODE, TESTS, DATA = Path("src") / PROJECT, Path("tests") / PROJECT, Path("data/processed")
NAME = re.compile(r"[A-Z][A-Za-z0-9]*")
# Longer names would not fit into the lines of the templates.
MAX_NAME = 30


@dataclass(frozen=True)
class Kind:
    """A kind of option to add: the package of its code in src/project/, its group in conf/, and its name in words."""

    package: str
    group: str
    words: str


KINDS = {
    "model": Kind("models", "model", "a network"),
    "loss": Kind("losses", "loss", "a loss"),
    "optimizer": Kind("optimizers", "optimizer", "an optimizer"),
    "scheduler": Kind("schedulers", "scheduler", "a schedule of the learning rate"),
    "callback": Kind("callbacks", "callbacks", "a callback of Lightning"),
    "metric": Kind("metrics", "metrics", "a metric of torchmetrics"),
    "augmentation": Kind("augmentations", "augmentation", "a transform of the training images"),
    "source": Kind("data", "data", "a data set"),
}
# Names of metrics that the pipeline itself logs, by group.
MEASURED = ("accuracy", "loss", "loss_step", "top3_accuracy", "calibration_error")
TAKEN = {"metrics": MEASURED, "callbacks": MEASURED}
# Other words for the same, and kinds that need no code of one's own.
SYNONYMS = {
    "network": "model", "net": "model", "criterion": "loss", "schedule": "scheduler", "transform": "augmentation",
    "data": "source", "dataset": "source", "datamodule": "source",
}  # fmt: skip
ELSEWHERE = {
    "logger": "a logger of Lightning needs only its file in conf/logger/ (docs/lightning.md)",
    "launcher": "a launcher needs only its file in conf/launcher/ (docs/extending.md)",
    "experiment": "an experiment needs only its file in conf/experiment/: copy one that is there",
    "sweep": "a sweep needs only its file in conf/sweep/: copy one that is there",
}


def describe_kinds() -> str:
    """List the kinds, and where the code of each is written, in lines."""
    return "\n".join(f"  {name:<14}{kind.words}, in {CODE}/{kind.package}/" for name, kind in KINDS.items())


def create(kind: str, name: str) -> None:
    """Write the files of a new option, and log their names and the command that tries it.

    Raises:
        UserError: there is no such kind, the name cannot be used, or one of the files exists; nothing is written then.
    """
    read_params()  # It refuses another folder than the project's.
    _check_kind(kind, name)
    _check_class_name(kind, name)
    option = snake_case(name)
    group, package = KINDS[kind].group, KINDS[kind].package
    _check_option_name(name, option, group)
    texts = render(kind, name)
    _check_imported_names(name, option, texts)
    _check_paths(texts, package)
    init = CODE / package / "__init__.py"
    generated = _write(({} if init.exists() else {init: ""}) | texts)
    for path in (*texts, *generated):
        log.info(f"Wrote {path}")
    choice = format_override(group, option)
    debug = " experiment=debug" if (CONF / "experiment" / "debug.yaml").is_file() else ""
    data = "" if kind == "source" or not debug else _other_data()
    # The trial of a sweep makes its data itself, and leaves that of the pipeline as it is.
    multirun = "-m " if kind == "source" or data else ""
    if kind != "source" and not multirun and not DATA.is_dir():
        log.info("Data:    dvc repro preprocess")
    log.info(f"Try it:  python src/train.py {multirun}{choice}{debug}{data}")
    log.info(f"Test it: python -m pytest {next(path for path in texts if path.is_relative_to(TESTS))}")
    log.info(f"Use it:  write `{group}: {option}` in params.yaml, then `dvc repro`")


def _other_data() -> str:
    """Return the override for the data set of params.yaml, if `experiment=debug` has another one; else nothing."""
    wanted, used = (
        compose_with_hydra(overrides).hydra.runtime.choices["data"] for overrides in ([], ["experiment=debug"])
    )
    return "" if wanted == used else " " + format_override("data", str(wanted))


def snake_case(name: str) -> str:
    """Return `my_net2` for MyNet2, and `sign_sgd` for SignSGD."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def render(kind: str, name: str) -> dict[Path, str]:
    """Return the content of each file by its path."""
    option, group, package = snake_case(name), KINDS[kind].group, KINDS[kind].package
    paths = {
        "code.py": CODE / package / f"{option}.py",
        "source.yaml": CONF / group / "source" / f"{option}.yaml",
        "conf.yaml": CONF / group / f"{option}.yaml",
        "test.py": TESTS / f"test_{kind}_{option}.py",
    }
    # No HTML, so nothing is escaped.
    templates = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    return {
        path: templates.get_template(f"{kind}/{template}.jinja").render(cls=name, name=option)
        for template, path in paths.items()
        if (TEMPLATES / kind / f"{template}.jinja").is_file()
    }


def _check_kind(kind: str, name: str) -> None:
    if kind in KINDS:
        return
    known = SYNONYMS.get(kind.lower(), kind.lower())
    if known in KINDS:
        raise UserError(f"There is no kind {escape_control(kind)}: write `python src/new.py {known} {name or 'Tiny'}`.")
    if instead := ELSEWHERE.get(known):
        raise UserError(f"There is no kind {known}: {instead}.")
    raise UserError(f"There is no kind {escape_control(kind)}; {suggest(kind, list(KINDS))}")


def _check_class_name(kind: str, name: str) -> None:
    command = f"python src/new.py {kind}"
    if not name:
        raise UserError(f"The name of the class is missing: write a name such as Tiny, `{command} Tiny`.")
    if not NAME.fullmatch(name):
        proposed = "".join(word[:1].upper() + word[1:] for word in re.split(r"[^A-Za-z0-9]+", name) if name.isascii())
        example = proposed if NAME.fullmatch(proposed) else "Tiny"
        raise UserError(
            f"{escape_control(name)} cannot be the name: it becomes that of a class, an upper-case letter and then "
            f"letters and digits of ASCII; write `{command} {example}`."
        )
    if len(name) > MAX_NAME:
        raise UserError(f"{name} is too long: choose a name of at most {MAX_NAME} characters.")


def _check_option_name(name: str, option: str, group: str) -> None:
    """Refuse a name that Python, YAML or Hydra reads as something else."""
    example = f"My{name}"
    if keyword.iskeyword(name) or keyword.iskeyword(option) or hasattr(builtins, name):
        raise UserError(
            f"{name} is a word of Python (the file would be {option}.py): choose another one, such as {example}."
        )
    if option in TAKEN.get(group, ()):
        raise UserError(f"{option} is always measured and logged: choose another name, such as {example}.")
    if to_yaml_inline(option) != option or format_override(group, option) != f"{group}={option}":
        raise UserError(
            f"{name} cannot be the name, because `{group}={option}` does not name a file for YAML and Hydra: choose "
            f"another one, such as {example}."
        )


def _check_imported_names(name: str, option: str, texts: Mapping[Path, str]) -> None:
    """Refuse a name that the written code has for something else."""
    for path, text in texts.items():
        nodes = [*ast.walk(ast.parse(text))] if path.suffix == ".py" else []
        imported = {
            alias.asname or alias.name
            for node in nodes
            if isinstance(node, ast.Import | ast.ImportFrom) and not getattr(node, "module", "").endswith(f".{option}")
            for alias in node.names
        }
        if taken := {name, option} & imported:
            raise UserError(f"{path} itself uses the name {taken.pop()}: choose another one, such as My{name}.")


def _check_paths(texts: Mapping[Path, str], package: str) -> None:
    """Refuse to overwrite a file, and a test that pytest could not tell from another one of the same name."""
    if existing := [path for path in texts if os.path.lexists(path)]:
        verb = "exists" if len(existing) == 1 else "exist"
        raise UserError(
            f"{' and '.join(map(str, existing))} {verb} already, so nothing was written: choose another name, or "
            "delete what you no longer need."
        )
    tests = {path.name: path for path in Path("tests").rglob("test_*.py")}
    if other := next((tests[path.name] for path in texts if path.name in tests), None):
        raise UserError(f"{other} has the name of the new test, so nothing was written: choose another name.")
    module = CODE / f"{package}.py"
    if module.is_file():
        raise UserError(
            f"{module} is in the way of the folder {CODE / package}/, so nothing was written: move it into the folder, "
            "and change the `_target_`s that name it."
        )


def _write(texts: Mapping[Path, str]) -> Iterable[str]:
    """Write the files, and what is generated from conf/, whose names are returned; all or nothing."""
    written: list[Path] = []
    try:
        for path, text in texts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("x", encoding="utf-8", newline="\n") as file:
                written.append(path)
                file.write(text)
        return write_documents() if PAGE.is_file() else ()
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)
        raise
