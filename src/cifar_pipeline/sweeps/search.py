"""Search with Optuna in the process that started the sweep: check the options, open the study, propose the trials.

A study is resumed by the same command. Its name is the fingerprint of the sweep, which does not include the number of
trials, how many run at a time, and the storage. Trials that were interrupted run again with the same values under the
same number; failed ones of earlier commands are replaced by new ones.

The search space is read in Hydra's override grammar as Optuna's distributions, and proposed values are written as
overrides. `interval(a, b)` is a range of numbers, of whole ones with `int(...)` or `tag(int, ...)`; `choice(...)` and
`a,b,c` are alternatives; `range(...)` are evenly spaced numbers; `tag(log, ...)` makes a range logarithmic.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice, repeat
from typing import Any

import numpy as np
import optuna
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from omegaconf import DictConfig, ListConfig, OmegaConf
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.params import to_yaml_inline
from cifar_pipeline.config.schema import validate
from cifar_pipeline.sweeps.study import (
    StudyReference,
    build_pruner,
    build_sampler,
    default_url,
    open_storage,
    translate_storage_errors,
    use_our_logging,
)
from cifar_pipeline.tracking.trial import RUN_METRICS, Objective
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.paths import workspace_id
from cifar_pipeline.utils.text import one_line

log = logging.getLogger(__name__)

# Attribute of a trial: id of the workspace whose process runs it, because workspaces may share a storage.
WORKSPACE_ATTRIBUTE = "workspace"
# Metrics of an epoch that are not named SPLIT/METRIC.
OTHER_EPOCH_METRICS = ("lr", "images_per_second")
# Types of the bounds of Optuna's distributions.
Number = int | float


@dataclass(frozen=True)
class SearchPlan:
    """A search before its study is open.

    Attributes:
        objectives: what it improves, the metric that decides in each training first.
        sampler: options of the sampler.
        pruner: options of the pruner; empty for none.
        space: distribution of each searched key.
        words: overrides of each job, each with the searched key whose value follows it, or an empty text.
        n_trials: in all.
        n_jobs: trials that are started together.
        storage: the database's URL; None for the workspace's own.
    """

    objectives: tuple[Objective, ...]
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    space: dict[str, BaseDistribution]
    words: tuple[tuple[str, str], ...]
    n_trials: int
    n_jobs: int
    storage: str | None

    @staticmethod
    def of(sweeper: DictConfig, composed: DictConfig, overrides: Sequence[Override]) -> "SearchPlan":
        """Read and check the options of a search.

        Args:
            sweeper: the node hydra.sweeper.
            composed: the configuration without the searched keys.
            overrides: the last one of each key.

        Raises:
            UserError: for whatever would make every trial fail.
        """
        use_our_logging()
        objectives = read_objectives(composed)
        sampler, pruner = (_options(sweeper, composed, key) for key in ("sampler", "pruner"))
        if not sampler:
            raise UserError(
                "hydra.sweeper.sampler is not set: add sampler=tpe, or type sweep=search, which chooses it."
            )
        for key in ("n_trials", "n_jobs"):
            if OmegaConf.is_missing(sweeper, key) or sweeper[key] < 1:
                raise UserError(f"hydra.sweeper.{key} must be a whole number of at least 1; sweep=search sets it.")
        space = {_name(override): distribution(override) for override in overrides if override.is_sweep_override()}
        if not space:
            raise UserError(
                "This search has no key to search: give one a range, such as "
                "'optimizer.lr=tag(log,interval(0.001,0.1))'."
            )
        if len(objectives) > 1 and pruner:
            raise UserError(
                f"A search for several objectives cannot stop trials early ({pruner['_target_']}): choose pruner=none."
            )
        build_sampler(sampler)
        build_pruner(pruner)
        plan = SearchPlan(
            objectives, sampler, pruner, space, tuple(_words(overrides, objectives)), sweeper.n_trials, sweeper.n_jobs,
            sweeper.storage,
        )  # fmt: skip
        for values in corners(space):
            validate(compose_config(plan.fill(values)))
        open_storage(plan.storage)
        return plan

    @property
    def ranking(self) -> list[str]:
        """The overrides by which a training has one monitor; none for a single objective, which it has already."""
        return [f"{key}={value}" for key, value in _ranking(self.objectives).items()]

    @property
    def identity(self) -> dict[str, Any]:
        """The options that distinguish searches for the same values of the same trainings."""
        return {"objectives": self.objectives, "sampler": self.sampler, "pruner": self.pruner}

    def fill(self, values: Mapping[str, str]) -> list[str]:
        """Return the overrides of a job with the searched values."""
        return [f"{word}{values[key]}" if key else word for word, key in self.words]

    def open(self, fingerprint: str, rerun: str) -> "Search":
        """Open the study, or create it. A rerun of the sweep (its id) has a study of its own."""
        storage = open_storage(self.storage)
        name = "-".join(filter(None, [fingerprint, rerun[:8]]))
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            sampler=build_sampler(self.sampler),
            pruner=build_pruner(self.pruner),
            directions=[_direction(objective) for objective in self.objectives],
            load_if_exists=True,
        )
        study.set_metric_names([objective.metric for objective in self.objectives])
        return Search(self, study)


class Search:
    """A search with its study.

    Attributes:
        plan: its options.
        study: Optuna's, in the storage.
        total: number of trials when it has ended, failed ones included.
    """

    def __init__(self, plan: SearchPlan, study: optuna.Study) -> None:
        self.plan, self.study = plan, study
        trials = study.get_trials(deepcopy=False)
        self._interrupted = [trial for trial in trials if trial.state == TrialState.RUNNING and self._is_own(trial)]
        ended = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        running = [trial for trial in trials if trial.state == TrialState.RUNNING]
        self._new = max(0, plan.n_trials - len(ended) - len(running))
        self.total = len(trials) + self._new
        if not self._new and not running:
            log.info(f"This search has its {plan.n_trials} trials; a larger hydra.sweeper.n_trials adds more.")
        elif trials:
            log.info(f"Resuming a search: {len(ended)} of {plan.n_trials} trials have ended.")

    @property
    def reference(self) -> StudyReference:
        """The reference by which the processes of trials find the study."""
        return StudyReference(self.study.study_name, self.plan.objectives, self.plan.pruner)

    def batches(self) -> Iterator[list[FrozenTrial]]:
        """Yield the trials to run: interrupted ones, then new ones, each batch with consecutive numbers."""
        interrupted, new = self._interrupted, self._new
        while interrupted or new:
            with translate_storage_errors():
                batch = [self._complete(trial) for trial in interrupted[: self.plan.n_jobs]]
                interrupted = interrupted[len(batch) :]
                proposed = min(new, self.plan.n_jobs - len(batch))
                batch += [self._propose() for _ in range(proposed)]
            new -= proposed
            for _, consecutive in groupby(enumerate(batch), lambda pair: pair[1].number - pair[0]):
                yield [trial for _, trial in consecutive]

    def overrides(self, trial: FrozenTrial) -> list[str]:
        """Return the overrides of a trial's job."""
        return self.plan.fill({key: format_value(trial.params[key]) for key in self.plan.space})

    def reject(self, trials: Sequence[FrozenTrial]) -> None:
        """Record as failed the trials whose values do not compose a configuration."""
        with translate_storage_errors():
            for trial in trials:
                self.study.tell(trial.number, state=TrialState.FAIL)

    def require_results(self, trials: Sequence[FrozenTrial]) -> None:
        """Warn about trials whose job has ended without recording a result; the next command repeats them."""
        with translate_storage_errors():
            stored = self.study.get_trials(deepcopy=False)
        for trial in (stored[trial.number] for trial in trials):
            if trial.state == TrialState.RUNNING:
                log.warning(f"Trial {trial.number + 1} has no result in the search: the same command repeats it.")

    def _is_own(self, trial: FrozenTrial) -> bool:
        """Whether a process of this workspace was running the trial; it holds the lock of the sweep no more."""
        if self.plan.storage in (None, default_url()):
            return True
        return bool(trial.user_attrs.get(WORKSPACE_ATTRIBUTE, workspace_id()) == workspace_id())

    def _propose(self) -> FrozenTrial:
        self._seed(len(self.study.get_trials(deepcopy=False)))
        trial = self.study.ask()
        trial.set_user_attr(WORKSPACE_ATTRIBUTE, workspace_id())
        return self._suggest(trial)

    def _complete(self, trial: FrozenTrial) -> FrozenTrial:
        """Propose the values that a trial lacks because its search was killed while it proposed them."""
        if trial.params.keys() >= self.plan.space.keys():
            return trial
        self._seed(trial.number)
        return self._suggest(optuna.trial.Trial(self.study, trial._trial_id))

    def _suggest(self, trial: optuna.trial.Trial) -> FrozenTrial:
        for key, entry in self.plan.space.items():
            if isinstance(entry, CategoricalDistribution):
                trial.suggest_categorical(key, entry.choices)
            elif isinstance(entry, IntDistribution):
                trial.suggest_int(key, entry.low, entry.high, step=entry.step, log=entry.log)
            else:
                assert isinstance(entry, FloatDistribution)
                trial.suggest_float(key, entry.low, entry.high, step=entry.step, log=entry.log)
        return self.study.get_trials(deepcopy=False)[trial.number]

    def _seed(self, number: int) -> None:
        """Build the sampler anew, with a seed that follows from its own and the trial's number.

        So a resumed search neither repeats proposals nor depends on how often it was interrupted.
        """
        seed = self.plan.sampler.get("seed")
        changed = {"seed": int(np.random.SeedSequence([seed, number]).generate_state(1)[0])} if seed is not None else {}
        self.study.sampler = build_sampler(self.plan.sampler, **changed)


_search: Search | None = None


def set_current_search(search: Search) -> None:
    """Set the search of this process. Called by the callback of the sweep."""
    global _search
    _search = search


def current_search() -> Search | None:
    """Return the search that this process has started; None for a grid, and in the processes of trials."""
    return _search


def read_objectives(config: DictConfig) -> tuple[Objective, ...]:
    """Read `monitor` and `mode` as the objectives of a search. Raises UserError if they do not fit together."""
    monitors, modes = (
        OmegaConf.to_container(node) if isinstance(node, ListConfig) else node for node in (config.monitor, config.mode)
    )
    if not isinstance(monitors, list) and not isinstance(modes, list):
        return (Objective(str(monitors), str(modes)),)
    shown = f"monitor={to_yaml_inline(monitors)} mode={to_yaml_inline(modes)}"
    if not isinstance(monitors, list) or not isinstance(modes, list) or len(monitors) != len(modes) or not monitors:
        raise UserError(
            f"{shown}: each objective needs a mode, as in monitor=[val/accuracy,parameters] mode=[max,min]."
        )
    for metric, mode in zip(monitors, modes, strict=True):
        if not isinstance(metric, str) or mode not in ("max", "min") or monitors.count(metric) > 1:
            raise UserError(f"{shown}: an objective is the name of a metric, given once, and a mode is max or min.")
    if monitors[0] in RUN_METRICS:
        raise UserError(
            f"{shown}: the first objective also chooses the best checkpoint, so it must be a metric of each epoch, "
            f"such as val/accuracy; put {monitors[0]} behind it."
        )
    known = (*RUN_METRICS, *OTHER_EPOCH_METRICS)
    for metric in monitors[1:]:
        if "/" not in metric and metric not in known and not config.callbacks:
            raise UserError(
                f"{shown}: nothing logs {metric}; besides metrics such as val/loss there are {', '.join(known)}."
            )
    return tuple(Objective(*pair) for pair in zip(monitors, modes, strict=True))


def _ranking(objectives: Sequence[Objective]) -> dict[str, str]:
    return {"monitor": objectives[0].metric, "mode": objectives[0].mode} if len(objectives) > 1 else {}


def _words(overrides: Sequence[Override], objectives: Sequence[Objective]) -> Iterator[tuple[str, str]]:
    """Yield `SearchPlan.words`. The training of a job has one monitor, the first of several objectives."""
    ranking = _ranking(objectives)
    for override in overrides:
        if override.is_sweep_override():
            yield f"{override.get_key_element()}=", _name(override)
        elif _name(override) not in ranking:
            yield str(override.input_line), ""
    yield from ((f"{key}={value}", "") for key, value in ranking.items())


def _name(override: Override) -> str:
    return override.get_key_element().lstrip("+")


def _options(sweeper: DictConfig, composed: DictConfig, key: str) -> dict[str, Any]:
    """Return the options of the sampler or the pruner, with values of the configuration that they refer to."""
    values, options = OmegaConf.to_container(composed), sweeper.get(key)
    assert isinstance(values, dict)
    if not isinstance(options, DictConfig) or not options.get("_target_"):
        return {}
    config = OmegaConf.create({**values, "hydra": {key: OmegaConf.to_container(options)}})
    resolved = OmegaConf.to_container(config.hydra[key], resolve=True)
    assert isinstance(resolved, dict)
    return {str(name): value for name, value in resolved.items()}


def _direction(objective: Objective) -> StudyDirection:
    return StudyDirection.MAXIMIZE if objective.mode == "max" else StudyDirection.MINIMIZE


def distribution(override: Override) -> BaseDistribution:
    """Convert the values of a swept override to a distribution. Raises UserError if Optuna rejects them."""
    sweep = override.value()
    try:
        if isinstance(sweep, IntervalSweep):
            assert sweep.start is not None and sweep.end is not None
            is_int = "int" in sweep.tags or (isinstance(sweep.start, int) and isinstance(sweep.end, int))
            return _range(sweep.start, sweep.end, is_int, "log" in sweep.tags)
        if isinstance(sweep, RangeSweep):
            values: list[Any] = sorted(override.sweep_iterator())
            is_int, is_log = all(isinstance(value, int) for value in values), "log" in sweep.tags
            step = None if is_log or len(values) < 2 else values[1] - values[0]
            return _range(values[0], values[-1], is_int, is_log, step)
        return CategoricalDistribution([_plain(value) for value in override.sweep_iterator(Transformer.encode)])
    except (ValueError, IndexError) as error:
        key, _, text = str(override.input_line).partition("=")
        reason = "it has no values" if isinstance(error, IndexError) else one_line(error).rstrip(".")
        raise UserError(f"{key.lstrip('+')}={text} cannot be searched: {reason}.") from None


def _range(low: Number, high: Number, is_int: bool, is_log: bool, step: Number | None = None) -> BaseDistribution:
    if is_int:
        return IntDistribution(int(low), int(high), log=is_log, step=int(step or 1))
    return FloatDistribution(float(low), float(high), log=is_log, step=step)


def _plain(value: Any) -> Any:
    """Return a choice as Optuna stores it: a number, a bool, or text as on the command line."""
    return value if isinstance(value, bool | int | float | str) else str(value)


def format_value(value: Any) -> str:
    """Format a proposed value as on the command line."""
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) else repr(value)


def corners(space: Mapping[str, BaseDistribution]) -> list[dict[str, str]]:
    """Return proposals that contain, together, the bounds of each range and all alternatives of each choice."""
    values = {key: _extremes(entry) for key, entry in space.items()}
    count = max(map(len, values.values()))
    columns = {key: list(islice(chain(known, repeat(known[-1])), count)) for key, known in values.items()}
    return [{key: format_value(column[row]) for key, column in columns.items()} for row in range(count)]


def _extremes(entry: BaseDistribution) -> list[Any]:
    if isinstance(entry, CategoricalDistribution):
        return list(entry.choices)
    assert isinstance(entry, FloatDistribution | IntDistribution)
    return list(dict.fromkeys([entry.low, entry.high]))
