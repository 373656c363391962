"""Ranges in Hydra's grammar become Optuna's distributions, and what a search cannot do is refused before any trial."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cifar_pipeline.sweeps.search import corners, distribution, format_value
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import Project
from helpers.parameters import some_of


def parsed(text: str):
    (override,) = OverridesParser.create().parse_overrides([text])
    return distribution(override)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("interval(0.1, 2)", FloatDistribution(0.1, 2.0)),
        ("tag(log, interval(0.1, 2))", FloatDistribution(0.1, 2.0, log=True)),
        ("int(interval(1, 8))", IntDistribution(1, 8)),
        ("tag(int, log, interval(1, 8))", IntDistribution(1, 8, log=True)),
        # As in a grid, range() does not contain its end.
        ("range(0, 3)", IntDistribution(0, 2)),
        ("range(1, 10, 3)", IntDistribution(1, 7, step=3)),
        ("range(0, 1, 0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("choice(4, 8)", CategoricalDistribution([4, 8])),
        ("sgd,adam", CategoricalDistribution(["sgd", "adam"])),
        ("[0.9,0.99],[0.8,0.9]", CategoricalDistribution(["[0.9,0.99]", "[0.8,0.9]"])),
        ("true,null", CategoricalDistribution([True, "null"])),
    ],
)
def test_a_range_becomes_a_distribution(text, expected):
    assert parsed(f"key={text}") == expected


@pytest.mark.parametrize(
    ("value", "text"), [(True, "true"), (8, "8"), (1e-5, "1e-05"), (0.25, "0.25"), ("[0.9,0.99]", "[0.9,0.99]")]
)
def test_a_proposed_value_is_written_as_on_the_command_line(value, text):
    assert format_value(value) == text


@pytest.mark.parametrize("text", ["interval(2, 1)", "tag(log, interval(0, 1))", "range(3, 3)"])
def test_an_impossible_range_is_refused(text):
    with pytest.raises(UserError, match="^key=.* cannot be searched: .*[^.]\\.$"):
        parsed(f"+key={text}")


def test_corners_contain_all_bounds_and_alternatives():
    space = {"a": FloatDistribution(0.0, 1.0), "b": CategoricalDistribution(["x", "y", "z"])}
    assert corners(space) == [{"a": "0.0", "b": "x"}, {"a": "1.0", "b": "y"}, {"a": "1.0", "b": "z"}]


SEVERAL = ("monitor=[val/accuracy,parameters]", "mode=[max,min]")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    some_of([
        (["pruner=asha"], "pruner=asha: conf/pruner/ has no file of this name; allowed are hyperband, median, none."),
        (["sampler=grid"], "sampler=grid: conf/sampler/ has no file of this name; allowed are random, tpe."),
        (["pruner=median", "hydra.sweeper.pruner.interval_steps=0"], "MedianPruner rejects n_startup"),
        (["+hydra.sweeper.sampler.sed=1"], "optuna.samplers.TPESampler has no such argument"),
        (["hydra.sweeper.sampler._target_=optuna.samplers.TPE"], "optuna.samplers has no `TPE`"),
        (["hydra.sweeper.pruner._target_=builtins.dict"], "builtins.dict"),
        (["hydra.sweeper.direction=maximize"], "is not a key: a search follows monitor and mode."),
        (["hydra.sweeper.direction=[maximize,minimize]"], "hydra.sweeper.direction is not a key"),
        (["monitor=[val/accuracy,parameters]"], "each objective needs a mode, as in monitor=[val/accuracy,parameters]"),
        (["monitor=[val/accuracy,parameters]", "mode=[max,min,min]"], "each objective needs a mode"),
        (["monitor=[val/accuracy,val/accuracy]", "mode=[max,max]"], "the name of a metric, given once"),
        (["monitor=[val/accuracy,parameter]", "mode=[max,min]"], "nothing logs parameter; besides"),
        (["monitor=[parameters,val/accuracy]", "mode=[min,max]"], "put parameters behind it."),
        ([*SEVERAL, "pruner=hyperband"], "A search for several objectives cannot stop trials early"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials must be a whole number of at least 1"),
        (["hydra.sweeper.n_trials=many"], "hydra.sweeper.n_trials: Value 'many' of type 'str' could not be converted"),
        (["hydra.sweeper.storage=http://127.0.0.1:5000"], "it must be the URL of a database that responds"),
        (["hydra.sweeper.storage=postgresql://me:secret@host/db"], "contains a secret: put it into an environment"),
        # Bounds and alternatives are validated as the values of a training.
        (["optimizer.momentum=interval(0, 1.5)"], "optimizer.momentum=1.5 is not allowed"),
        (["optimizer=sgd,adm"], "optimizer=adm: conf/optimizer/ has no file of this name; did you mean `adam`?"),
        (["optimizer=sgd,adam"], "optimizer.momentum: the chosen option (torch.optim.Adam) has no such key"),
        (["seed=range(2)", "monitor=val/loss,val/accuracy"], "A sweep ranks its trials by monitor"),
    ], 0, 2, 6, 8, 11, 13, 17, 18, 20),
)  # fmt: skip
def test_what_a_search_cannot_do_is_refused_before_any_trial(project: Project, arguments, sentence):
    project.start(train, "-m", "sweep=search", *arguments).assert_refused(sentence)
    assert not (project.folder / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-m", "optimizer=sgd,adam", *SEVERAL], "only a search (sweep=search) has a list of several objectives"),
        (SEVERAL, "only a search (sweep=search) has a list of several objectives"),
        (["-m", "optimizer=sgd,adam", "pruner=median"], "only a search has a pruner; add sweep=search"),
        (["-m", "hydra/sweeper=optuna4", "seed=0,1"], "add sampler=tpe, or type sweep=search"),
        (["-m", "hydra/sweeper=optuna", "seed=0,1"], "choose sweep=search, or hydra/sweeper=optuna4 with sampler=tpe"),
        (["sampler=random"], "only a search has a sampler; add sweep=search"),
    ],
)
def test_what_only_a_search_has_is_refused_elsewhere(project: Project, arguments, sentence):
    project.start(train, *arguments).assert_refused(sentence)


def train(config: object) -> None:
    """Never called."""
