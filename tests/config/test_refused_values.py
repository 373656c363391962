"""An invalid configuration ends the first stage with one sentence, before anything is written."""

import shutil
from collections.abc import Callable
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.schema import field_schemas, validate
from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.utils.errors import UserError
from configure import configure
from helpers.config_project import Project
from helpers.dir_snapshot import content_of
from helpers.source_tree import PUBLISHED

Edit = Callable[[Project], Any]

# Arguments of `python src/configure.py`, and fragments of the message.
COMMANDS = {
    "optimizer=adm": ["optimizer=adm", "`adam`"],
    "optimizer=": ["optimizer=", "adam, ", "sgd"],
    "optimizer=3": ["optimizer=3", "conf/optimizer/", "sgd"],
    "optimizer=null": ["optimizer=null", "conf/optimizer/", "sgd"],
    "experiment=tutoral": ["experiment=tutoral", "`tutorial`"],
    "experiment=nope": ["experiment=nope", "allowed are", "tutorial"],
    "data/source=digit": ["data/source=digit", "`digits`"],
    "optimiser=adam": ["optimiser", "`optimizer`"],
    "mlflow.experiment_name=": ["mlflow.experiment_name=''", "without control characters"],
    "mlflow.tags={git.commit:abc}": ["mlflow.tags.git.commit", "sets this tag itself"],
    "mlflow.tags={mlflow.user:me}": ["mlflow.tags.mlflow.user", "sets this tag itself"],
    "+mlflow.tags.team.lead=me": ["mlflow.tags={team: {lead: me}}", "a mapping of names to text"],
    "mlflow.tags={a//b:1}": ["mlflow.tags.a//b", "a name has at most"],
    "mlflow.description=3": ["mlflow.description=3", "a text of at most 8000 characters, or null"],
    "mlflow.log_system_metrics=maybe": ["mlflow.log_system_metrics=maybe", "true or false"],
    "optimizer.lrr=1": ["optimizer.lrr", "torch.optim.SGD", "`optimizer.lr`"],
    "lr=1": ["lr:", "`optimizer.lr`"],
    "batch_size=32": ["batch_size:", "`trainer.batch_size` or `evaluation.batch_size`"],
    "foo=1": ["foo:", "allowed are", "optimizer"],
    "experimnt=debug": ["experimnt", "`experiment`"],
    "+optimizer.foo=1": ["optimizer.foo", "torch.optim.SGD", "allowed are lr, momentum"],
    "+optimizer.momentun=1": ["optimizer.momentun", "torch.optim.SGD", "`momentum`"],
    "+trainer.max_epoch=1": ["trainer.max_epoch", "`max_epochs`"],
    "+trainr.max_epochs=1": ["trainr", "`trainer`"],
    "+model.channels=1": ["model.channels", "LeNet"],
    "+optimizer=adam": ["Multiple values for optimizer", "override optimizer: adam"],
    "~optimizer": ["optimizer is missing"],
    "~trainer.batch_size": ["trainer.batch_size is missing"],
    "~loss.output_activation": ["loss.output_activation is missing"],
    "augmentation=foto": ["augmentation=foto", "`photo`"],
    "augmentation=[flip,colour_jitter]": ["augmentation=colour_jitter", "`color_jitter`"],
    "augmentation=mixup augmentation.mixup.alfa=1": ["augmentation.mixup.alfa", "`augmentation.mixup.alpha`"],
    "augmentation=random_erasing augmentation.random_erasing.p=2": [
        "augmentation.random_erasing",
        "rejects p=2",
        "interval",
    ],
    "augmentation=flip +augmentation.flip.per_batch=2": ["augmentation.flip.per_batch=2"],
    "+augmentation.a._target_=torchvision.transforms.v2.RandomInvrt": ["augmentation.a", "`RandomInvert`"],
    "augmentation.flip.alternating_flip=true": ["this option is not chosen", "augmentation=[flip]"],
    "optimizer.lr": ["optimizer.lr", "key=value"],
    "optimizer.lr=[1": ["optimizer.lr=[1", "key=value"],
    "optimizer.lr=1,2": ["optimizer.lr=1,2", "add --multirun"],
    "optimizer.lr=-1": ["optimizer.lr=-1", "a number above 0"],
    "optimizer.lr={a:1}": ["optimizer.lr={a: 1}", "a number above 0"],
    "optimizer.lr=${optimizer.lrr}": ["optimizer.lr", "optimizer.lrr"],
    "trainer.strategy=dp": ["trainer.strategy=dp", "auto, ddp or fsdp"],
    "trainer.max_tim=1": ["trainer.max_tim", "`trainer.max_time`"],
    "trainer.max_time=5": ["trainer.max_time=5", "DD:HH:MM:SS", "{minutes: 30}"],
    "trainer.max_time=1:00:00": ['trainer.max_time="1:00:00"', "DD:HH:MM:SS"],
    "trainer.max_steps=0": ["trainer.max_steps=0", "-1 for no limit"],
    "trainer.limit_train_batches=1.5": ["trainer.limit_train_batches=1.5", "a fraction"],
    "trainer.overfit_batches=-1": ["trainer.overfit_batches=-1", "a fraction of them from 0"],
    "trainer.val_check_interval=0": ["trainer.val_check_interval=0", "a fraction of an epoch"],
    "trainer.gradient_clip_algorithm=valu": ["trainer.gradient_clip_algorithm=valu", "`value`"],
    "trainer.deterministic=1": ["trainer.deterministic=1", "true, false, warn"],
    "trainer.fast_dev_run=-1": ["trainer.fast_dev_run=-1", "a number of batches"],
    "trainer.accelerator=gpu": ["trainer.accelerator is not a key", "runtime.accelerator"],
    "trainer.precision=16": ["trainer.precision is not a key", "precision=bf16"],
    "+trainer.logger=true": ["trainer.logger is not a key", "logger=[tensorboard]"],
    "+trainer.callbacks=[]": ["trainer.callbacks is not a key", "callbacks=[early_stopping]"],
    "+trainer.plugins=[]": ["trainer.plugins is not a key", "trainer.strategy"],
    "precision.cpu=16": ["precision.cpu=16", "16-mixed", "transformer-engine"],
    "trainer.gradient_clip_algorithm=value": ["has no effect without a limit", "trainer.gradient_clip_val"],
    "+weight_averaging.decay=0.9": ["weight_averaging.decay has no effect", "weight_averaging=ema"],
    "data=digits data.mirrors=[http://host/a.tar.gz]": ["data.mirrors", "has this key", "val_fraction"],
    "data=image_folder data.timeout=1": ["data.timeout", "has this key", "resize_mode"],
    "-m seed=1,2": ["configure.py runs one configuration", "`python src/train.py -m ...`"],
    "image_dir=.": ["image_dir=.: this folder contains the whole project"],
    "image_dir=..": ["image_dir=..: this folder contains the whole project"],
    "image_dir=data": ["image_dir=data: this folder holds or is in data/raw/"],
    "image_dir=models/best": ["image_dir=models/best: this folder holds or is in models/"],
    "mode=maximum": ["mode=maximum", "`max`"],
    "callbacks=early": ["callbacks=early", "conf/callbacks/", "early_stopping"],
    "callbacks=[early_stopping,lr_monitr]": ["callbacks=lr_monitr", "`lr_monitor`"],
    "callbacks=null": ["callbacks=null", "conf/callbacks/"],
    "callbacks.early_stopping.patience=3": ["callbacks.early_stopping", "not chosen", "callbacks=[early_stopping]"],
    "callbacks=early_stopping callbacks.early_stopping.patience=few": [
        "callbacks.early_stopping.patience=few",
        "whole",
    ],
    "callbacks=early_stopping callbacks.early_stopping.mode=up": ["EarlyStopping", "mode=up", "min, max"],
    "callbacks=early_stopping callbacks.early_stopping.threshold=1": ["threshold", "+callbacks.early_stopping.thresh"],
    "callbacks=lr_monitor callbacks.lr_monitor.needs_single_batches=2": ["needs_single_batches=2", "boolean"],
    "+callbacks.mine.patience=3": ["callbacks.mine names no class", "+callbacks.mine._target_="],
    "+callbacks.mine._target_=lightning.pytorch.callbacks.EarlyStoping": ["callbacks.mine._target_", "`EarlyStopping`"],
    "+callbacks.mine=3": ["callbacks.mine names no class"],
    "metrics=f1": ["metrics=f1", "conf/metrics/", "allowed are auroc, balanced_accuracy, f1_macro"],
    "metrics=f1_macro +metrics.f1_macro.num_classes=3": ["metrics.f1_macro.num_classes", "the pipeline passes it"],
    "logger=mlflow": ["logger=mlflow is not needed", "MLflow always logs"],
    "logger=[tensorbord]": ["logger=tensorbord", "`tensorboard`"],
    "runtime.log_every_n_steps=0": ["runtime.log_every_n_steps=0", "at least 1, or null"],
    "scheduler=plateau scheduler.factor=1": ["scheduler.factor=1", "above 0 and below 1"],
    "trainer.devices=0": ["trainer.devices=0", "auto or a whole number of at least 1"],
    "trainer.batch_size=0": ["trainer.batch_size=0", "a whole number of at least 1"],
    "scheduler=one_cycle scheduler.initial_factor=0": ["scheduler.initial_factor=0", "positive"],
    "optimizer=adam optimizer.betas=[0.9,0.9,0.9]": ["optimizer.betas=[0.9, 0.9, 0.9]", "two numbers"],
    "optimizer.nesterov=true optimizer.momentum=0": ["torch.optim.SGD", "nesterov=true", "momentum=0", "Nesterov"],
    "optimizer=muon optimizer.conv_mode=foo": ["timm.optim.Muon", "conv_mode=foo"],
    "loss.output_activation=foo": ["loss.output_activation=foo", "softmax, normalized_sigmoid, clipped"],
    "loss.output_activation=sofmax": ["loss.output_activation=sofmax", "softmax?"],
    "loss.output_activation=": ["loss.output_activation=''"],
    "loss=focal loss.alpha=7": ["loss.alpha=7", "between 0 and 1"],
    "loss=focal loss.gamma=x": ["loss.gamma=x", "a number of at least 0"],
    "model._target_=cifar_pipeline.models.lenet.LeNat": ["model._target_=", "`LeNat`", "`LeNet`"],
    "model._target_=cifar_pipeline.model.lenet.LeNet": ["model._target_=", "`model`", "`models`"],
    "optimizer._target_=torch.optim.SDG": ["optimizer._target_=torch.optim.SDG", "`SGD`"],
    "model._target_=nowhere.Net": ["model._target_=nowhere.Net", "No module named 'nowhere'"],
}

# Other invalid values, checked on one composed configuration, and fragments of the message.
VALUES = {
    "optimizer.lr=abc": ["optimizer.lr=abc", "a number above 0"],
    "optimizer.lr=true": ["optimizer.lr=true", "a number above 0"],
    "optimizer.lr=nan": ["optimizer.lr=.nan", "a number above 0"],
    "optimizer.lr=inf": ["optimizer.lr=.inf", "a number above 0"],
    "optimizer.lr=": ["optimizer.lr=''", "a number above 0"],
    "optimizer.lr=null": ["optimizer.lr=null", "a number above 0"],
    "trainer.batch_size=2.5": ["trainer.batch_size=2.5", "a whole number of at least 1"],
    "trainer.limit_train_batches=0": ["trainer.limit_train_batches=0", "or null"],
    "data.val_fraction=1.2": ["data.val_fraction=1.2", "at least 0 and below 1"],
    "data.val_fraction=x": ["data.val_fraction=x", "at least 0 and below 1"],
    "data.folds=1": ["data.folds=1", "a whole number of at least 2"],
    "data.fold=-1": ["data.fold=-1", "a whole number of at least 0, or null"],
    "data.fold=5": ["data.fold=5", "data.folds=5 are numbered from 0 to 4"],
    "data.source=null": ["data.source=null", "an option"],
    "scheduler.warmup_fraction=2": ["scheduler.warmup_fraction=2", "from 0 to 1"],
    "seed=-1": ["seed=-1", "from 0 to 4294967295"],
    "seed=": ["seed=''", "from 0 to 4294967295"],
    "rerun=yes": ['rerun="yes"', "true or false"],
    "precision.cpu=bf17": ["precision.cpu=bf17", "bf16-mixed"],
    "evaluation.checkpoint=first": ["evaluation.checkpoint=first", "last or best"],
    "normalization.std=0": ["normalization.std=0", "above 0"],
    "runtime.threads=0": ["runtime.threads=0", "auto or a whole number"],
    "runtime.accelerator=": ["runtime.accelerator=''"],
}

SGD, TUTORIAL = "conf/optimizer/sgd.yaml", "conf/experiment/tutorial.yaml"


def params(old: str, new: str) -> Edit:
    return lambda project: project.edit("params.yaml", old, new)


def overrides(text: str) -> Edit:
    return params("overrides: {}", f"overrides: {text}")


def momentum_for_adam(project: Project) -> None:
    project.edit("params.yaml", "optimizer: null", "optimizer: adam")
    project.edit("params.yaml", "overrides: {}", "overrides: {optimizer: {momentum: 0.3}}")


# Edits of params.yaml, and fragments of the message.
PARAMS: dict[str, tuple[Edit, list[str]]] = {
    "an option": (params("optimizer: null", "optimizer: adm"), ["optimizer=adm", "`adam`"]),
    "a number for an option": (params("optimizer: null", "optimizer: 3"), ["`optimizer`", "conf/optimizer/", "3"]),
    "a callback": (
        params("callbacks: null", "callbacks: [early_stoping]"),
        ["params.yaml: callbacks=early_stoping", "`early_stopping`"],
    ),
    "a number among callbacks": (params("callbacks: null", "callbacks: [3]"), ["`callbacks`", "conf/callbacks/", "3"]),
    "a callback that is not chosen": (
        overrides("{callbacks: {early_stopping: {patience: 3}}}"),
        ["callbacks.early_stopping"],
    ),
    "an empty option": (params("optimizer: null", "optimizer: ''"), ["optimizer=", "sgd"]),
    "an experiment": (
        params("experiment: tutorial", "experiment: tutoral"),
        ["params.yaml: experiment=tutoral", "`tutorial`"],
    ),
    "a seed": (params("seed: 0", "seed: x"), ["params.yaml: seed=x", "a whole number"]),
    "a key": (params("optimizer: null", "optimiser: null"), ["params.yaml", "`optimiser`", "`optimizer`"]),
    "a far key": (params("seed: 0", "seed: 0\nfoo: 1"), ["params.yaml", "`foo`", "allowed are experiment, seed"]),
    "a key in overrides": (overrides("{optimizer: {lrr: 1}}"), ["params.yaml: optimizer.lrr", "`optimizer.lr`"]),
    "a group in overrides": (overrides("{optimiser: {lr: 1}}"), ["optimiser", "`optimizer`"]),
    "a value in overrides": (
        overrides("{optimizer: {lr: abc}}"),
        ["params.yaml: optimizer.lr=abc", "a number above 0"],
    ),
    "a choice in overrides": (overrides("{optimizer: adam}"), ["params.yaml", "`optimizer: adam`"]),
    "a second seed": (overrides("{seed: 3}"), ["params.yaml", "`seed: 3`"]),
    "overrides as a list": (overrides("[optimizer.lr=3]"), ["params.yaml", "a mapping"]),
    "another option's key": (momentum_for_adam, ["optimizer.momentum", "torch.optim.Adam", "no such key", "betas"]),
    "no YAML": (lambda project: project.write("params.yaml", "seed: [1\nb"), ["params.yaml, line 2", "YAML"]),
    "a key twice": (params("seed: 0", "seed: 0\nseed: 1"), ["params.yaml, line", "seed"]),
    "a list": (lambda project: project.write("params.yaml", "- a\n"), ["params.yaml", "a mapping"]),
    "nothing": (lambda project: project.write("params.yaml", ""), ["params.yaml", "experiment: tutorial"]),
    "no file": (lambda project: (project.folder / "params.yaml").unlink(), ["params.yaml", "root folder"]),
    "another folder": (lambda project: shutil.rmtree(project.folder / "conf"), ["conf/", "root folder"]),
}


def conf(path: str, old: str, new: str) -> Edit:
    return lambda project: project.edit(path, old, new)


def two_callbacks_of_one_name(project: Project) -> None:
    text = (project.folder / "conf" / "callbacks" / "early_stopping.yaml").read_text()
    project.write("conf/callbacks/mine.yaml", text)
    project.edit("params.yaml", "callbacks: null", "callbacks: [early_stopping, mine]")


# Edits of a file of conf/, and fragments of the message.
CONF: dict[str, tuple[Edit, list[str]]] = {
    "an argument": (
        conf(SGD, "momentum: 0.9", "momentun: 0.9"),
        ["optimizer.momentun", "torch.optim.SGD", "`momentum`"],
    ),
    "a target": (conf(SGD, "torch.optim.SGD", "torch.optim.SDG"), ["optimizer._target_", "`SDG`", "`SGD`"]),
    "_target_": (conf(SGD, "_target_: ", "target: "), ["optimizer=", "`_target_`"]),
    "_partial_": (conf(SGD, "_partial_: ", "_partal_: "), ["optimizer._partal_", "torch.optim.SGD"]),
    "a value": (conf(SGD, "lr: 0.001", "lr: fast"), ["optimizer.lr=fast", "a number above 0"]),
    "no YAML": (lambda project: project.write(SGD, "lr: [\n"), [f"{SGD}, line 2", "YAML"]),
    "a key twice": (conf(SGD, "lr: 0.001", "lr: 0.001\nlr: 0.002"), [f"{SGD}, line", "lr"]),
    "an empty file": (lambda project: project.write(SGD, ""), ["optimizer", "`_target_`"]),
    "a trainer's key": (
        conf("conf/trainer/default.yaml", "batch_size: 4", "batchsize: 4"),
        ["trainer.batchsize", "`batch_size`"],
    ),
    "a callback under another name": (
        two_callbacks_of_one_name,
        ["conf/callbacks/mine.yaml must hold one entry", "`mine:`", "early_stopping"],
    ),
    "an experiment's key": (conf(TUTORIAL, "batch_size: 4", "batchsize: 4"), ["trainer.batchsize", "`batch_size`"]),
    "an experiment's option": (conf(TUTORIAL, "optimizer: sgd", "optimizer: sdg"), ["optimizer=sdg", "`sgd`"]),
    "an experiment's group": (
        conf(TUTORIAL, "/optimizer: sgd", "/optimiser: sgd"),
        ["experiment/tutorial", "optimiser"],
    ),
    "an experiment's package": (conf(TUTORIAL, "# @package _global_\n", ""), ["experiment/tutorial", "@experiment"]),
}


def is_refused_by_its_values(published: DictConfig, command: str) -> bool:
    """Return whether `validate` refuses the composed configuration with these values, in the same words."""
    try:
        changed = published.copy()
        for override in OverridesParser.create().parse_overrides(command.split()):
            OmegaConf.update(changed, override.key_or_group, override.value(), merge=False, force_add=True)
        validate(changed)
    except UserError as error:
        return all(fragment in str(error) for fragment in COMMANDS[command])
    except (HydraException, OmegaConfBaseException):
        pass  # not a command line of values
    return False


@pytest.mark.parametrize("command", COMMANDS)
def test_an_invalid_command_line_is_refused_in_a_sentence(
    project: Project, published: DictConfig, command: str
) -> None:
    if is_refused_by_its_values(published, command):
        return  # in a fiftieth of the time of a stage
    before = content_of(project.folder)
    project.start(configure, *command.split()).assert_refused(*COMMANDS[command])
    assert content_of(project.folder) == before


@pytest.mark.parametrize("case", PARAMS)
def test_an_invalid_params_file_is_refused_in_a_sentence(project: Project, case: str) -> None:
    edit, fragments = PARAMS[case]
    edit(project)
    before = content_of(project.folder)
    project.start(configure).assert_refused(*fragments)
    assert content_of(project.folder) == before


@pytest.mark.parametrize("case", CONF)
def test_an_invalid_file_of_conf_is_refused_in_a_sentence(project: Project, case: str) -> None:
    edit, fragments = CONF[case]
    edit(project)
    before = content_of(project.folder)
    project.start(configure).assert_refused(*fragments)
    assert content_of(project.folder) == before


@pytest.fixture(scope="module")
def published() -> DictConfig:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PUBLISHED)
        return compose_config()


@pytest.mark.parametrize("override", VALUES)
def test_an_invalid_value_is_refused_in_a_sentence(published: DictConfig, override: str) -> None:
    config = published.copy()
    parsed = OverridesParser.create().parse_override(override)
    OmegaConf.update(config, parsed.key_or_group, parsed.value(), merge=False)
    with pytest.raises(UserError) as error:
        validate(config)
    for fragment in VALUES[override]:
        assert fragment in str(error.value)


def test_a_refusal_leaves_the_composed_file_unchanged(project: Project) -> None:
    assert project.start(configure).code == 0
    before = (project.folder / "composed.yaml").read_text()
    project.start(configure, "optimizer.lr=-1").assert_refused()
    assert (project.folder / "composed.yaml").read_text() == before


@pytest.mark.parametrize("flags", [("--cfg", "job"), ("-c", "all"), ("--cfg", "job", "--package", "optimizer")])
def test_printing_the_configuration_validates_it(project: Project, flags: tuple[str, ...]) -> None:
    project.start(configure, *flags, "optimizer.lr=-1").assert_refused("optimizer.lr=-1", "a number above 0")
    ended = project.start(configure, *flags, "optimizer.lr=0.5")
    assert ended.code in (0, None) and "lr: 0.5" in ended.out and ended.err == ""
    assert not (project.folder / "composed.yaml").exists()


@pytest.mark.parametrize(
    ("added", "fragment"),
    [
        ("+optimizer.lrr=1", "optimizer.lrr: torch.optim.SGD has no such argument; did you mean `lr`?"),
        # Another optimizer's.
        ("+optimizer.betas=[0.9,0.9]", "optimizer.betas: torch.optim.SGD has no such argument"),
        ("+scheduler.warmup_fractio=0.1", "did you mean `warmup_fraction`?"),
        ("+model.width=3", "model.width: cifar_pipeline.models.lenet.LeNet has no such argument"),
    ],
)
def test_an_unknown_key_is_refused_where_the_configuration_is_printed(
    project: Project, added: str, fragment: str
) -> None:
    project.start(configure, "--cfg", "job", added).assert_refused(fragment)


def test_a_printed_configuration_is_what_the_stages_run_with(project: Project) -> None:
    ended = project.start(configure, "--cfg", "job", "optimizer=adam")
    assert OmegaConf.create(ended.out) == project.compose("optimizer=adam")


def test_a_word_that_is_nearly_right_is_suggested(published: DictConfig) -> None:
    config = published.copy()
    config.runtime.engine = "eagr"
    with pytest.raises(UserError, match="must be auto, eager or compiled; did you mean `eager`\\?"):
        validate(config)


def test_every_declared_key_exists_in_some_option(project: Project) -> None:
    keys = set()
    for path in (project.folder / "conf").rglob("*.yaml"):
        *groups, _ = path.relative_to(project.folder / "conf").with_suffix("").parts
        keys |= {".".join([*groups, str(key)]) for key in OmegaConf.load(path)}
    keys |= {key.replace("data.source.", "data.fallback.", 1) for key in keys}
    keys |= {"data.source", "data.fallback", *(path.name for path in (project.folder / "conf").iterdir())}
    assert set(field_schemas()) <= keys


def test_a_key_that_the_pipeline_reads_itself_may_be_left_out(project: Project, digits: Dataset) -> None:
    from cifar_pipeline.training.setup import build_datamodule

    project.edit(SGD, "full_batch: false", "")
    assert project.start(configure).code == 0
    assert build_datamodule(project.compose(), digits).batch_size == 4
