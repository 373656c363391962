"""An override that a command would accept and not use is refused, or named where another stage reads it."""

import pytest

from cifar_pipeline.config.compose import STAGE_KEYS, compose_config
from cifar_pipeline.config.unused_values import STAGE_READS, check_unused
from cifar_pipeline.utils.errors import UserError
from configure import configure
from evaluate import evaluate
from helpers.config_project import Project
from helpers.source_tree import PUBLISHED
from train import train

OWN = "data=image_folder model=timm"
# Overrides of train.py, and the message.
REFUSED = {
    "predict.top_k=3": "predict.top_k=3 has no effect on train.py: set it in conf/predict/ or params.yaml",
    "registry.alias=best": "has no effect on train.py: set it in conf/registry/ or params.yaml",
    "serve.port=80": "has no effect on train.py: set it in conf/serve/",
    "lr_finder.mode=linear": "has no effect on train.py: find_lr.py takes it",
    "comparison.significance_level=0.1": "is for sweeps only: add -m",
    "runtime.gpus_per_trial=0.5": "is for sweeps only: add -m",
    "data.fold=1 data.val_fraction=0.2": "data.val_fraction=0.2 has no effect beside data.fold=1",
    "data.folds=4": "data.folds=4 has no effect without data.fold: write data.fold=0",
    "image_dir=mine": "image_dir=mine has no effect without your own images: choose data=image_folder",
    "optimizer=gradient_descent trainer.batch_size=8": "trainer.batch_size=8 has no effect with optimizer.full_batch",
    "trainer.overfit_batches=2 trainer.limit_train_batches=9": "limit_train_batches=9 has no effect beside trainer",
    "trainer.overfit_batches=2 trainer.limit_val_batches=9": "limit_val_batches=9 has no effect beside trainer",
    f"{OWN} model.max_upscaling=2": "model.max_upscaling=2 has no effect",
    f"{OWN} model.crop_fraction=0.5": "model.crop_fraction=0.5 has no effect",
    f"{OWN} model.weights=x.pt model.input_size=64 model.min_input_size=32": "model.min_input_size=32 has no effect",
    f"{OWN} model.reset_classifier=true": "model.reset_classifier=true has no effect without model.weights",
    "finetune=head finetune.layer_decay=0.5": "finetune.layer_decay=0.5 has no effect while only the classifier trains",
    "finetune=full finetune.cache_features=true": "finetune.cache_features=true has no effect while no layer is frozen",
    "precision=fp32 +precision.cpu_bf16_min_parameters=1": "has no effect beside precision.cpu=32-true",
    "runtime.threads=1 runtime.min_images_per_thread=8": "has no effect beside runtime.threads=1",
    "runtime.auto_batch_ram=0.3": "has no effect beside trainer.batch_size=4: write trainer.batch_size=auto too",
    "runtime.engine=eager runtime.steps_per_chunk=9": "has no effect beside runtime.engine=eager",
    "runtime.engine=eager runtime.compile_min_steps=9": "has no effect beside runtime.engine=eager",
    "runtime.accelerator=cpu runtime.cuda_graph_steps=9": "has no effect beside runtime.accelerator=cpu",
    "data=digits +data.mirrors=[x]": "+data.mirrors=[x] has no effect: this option of conf/data/ has no such key",
    "data=image_folder ++data.timeout=3": "++data.timeout=3 has no effect: this option of conf/data",
}
ACCEPTED = (
    "data.fold=1 data.folds=4 optimizer=adam trainer.batch_size=8 trainer.limit_train_batches=9 "
    "runtime.engine=compiled runtime.steps_per_chunk=9 runtime.min_images_per_thread=8 "
    "evaluation=best tta=flip metrics=f1_macro mlflow.description=mine rerun=true",
    f"{OWN} image_dir=mine ++data.size=16 data.val_fraction=0.2 model.weights=x.pt model.max_upscaling=2 "
    "model.crop_fraction=0.5 model.reset_classifier=true finetune=gradual finetune.layer_decay=0.5 "
    "finetune.cache_features=true trainer.batch_size=auto runtime.auto_batch_ram=0.3",
)


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PUBLISHED)


def check(text: str, command: str = "train", swept: tuple[str, ...] | None = None) -> list[str]:
    return check_unused(compose_config(text.split()), text.split(), command, compose_config, swept)


@pytest.mark.parametrize("text", REFUSED)
def test_an_override_without_effect_is_refused(text: str) -> None:
    with pytest.raises(UserError) as error:
        check(text)
    assert REFUSED[text] in str(error.value)


@pytest.mark.parametrize("text", ACCEPTED)
def test_an_override_with_an_effect_is_accepted(text: str) -> None:
    assert check(text) == []


def test_what_depends_on_a_swept_key_is_left_to_the_trials() -> None:
    with pytest.raises(UserError, match=r"data\.folds=4 has no effect"):
        check("data.folds=4", swept=("optimizer",))
    assert check("data.folds=4", swept=("data.fold",)) == []
    with pytest.raises(UserError, match=r"trainer\.batch_size=8 has no effect"):
        check("optimizer=gradient_descent trainer.batch_size=8", swept=("seed",))
    assert check("trainer.batch_size=8", swept=("optimizer",)) == []
    assert check("comparison.significance_level=0.1 runtime.gpus_per_trial=0.5", swept=("seed",)) == []


@pytest.mark.parametrize(
    ("command", "text", "others"),
    [
        ("evaluate", "experiment=debug optimizer.lr=1 seed=2 evaluation=best", ["optimizer.lr", "seed"]),
        ("evaluate", "data=digits rerun=true", ["rerun"]),
        ("preprocess", "data.size=9 model.input_size=9 optimizer=adam", ["optimizer"]),
        ("download", "data=digits trainer.max_epochs=1", ["trainer.max_epochs"]),
        ("train", "data=digits trainer.max_epochs=1 evaluation=best", []),
    ],
)
def test_keys_that_only_other_stages_read_are_named(command: str, text: str, others: list[str]) -> None:
    if "data.size" in text:
        text = f"data=image_folder {text}"
    assert check(text, command) == others


def test_the_commands_check_their_overrides(project: Project) -> None:
    project.start(train, "data.folds=4").assert_refused("data.folds=4 has no effect without data.fold")
    project.start(train, "--cfg", "job", "predict.top_k=1").assert_refused("predict.top_k=1 has no effect on train.py")
    assert project.start(configure, "data=digits").err == ""
    assert "evaluate.py does not read optimizer.lr." in project.start(evaluate, "optimizer.lr=1").out


@pytest.mark.parametrize("what", ["epochs", "steps"])
def test_a_minimum_above_the_maximum_is_refused(project: Project, what: str) -> None:
    overrides = (f"trainer.max_{what}=2", f"trainer.min_{what}=3")
    message = f"trainer.min_{what}=3 has no effect: trainer.max_{what}=2 ends"
    project.start(configure, *overrides).assert_refused(message)


def test_params_file_cannot_add_a_key_that_the_data_does_not_have(project: Project) -> None:
    project.edit("params.yaml", "overrides: {}", "overrides: {data: {mirrors: [x]}}")
    project.edit("params.yaml", "data: null", "data: digits")
    project.start(configure).assert_refused("data.mirrors")


@pytest.mark.parametrize("stage", STAGE_READS)
def test_a_stage_reads_what_decides_its_result(stage: str) -> None:
    assert {key.partition(".")[0] for key in STAGE_KEYS[stage]} <= {*STAGE_READS[stage]}
