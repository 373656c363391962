"""List the test that runs each command of the documentation, and check that the list is complete."""

import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from cifar_pipeline.config.compose import compose_config
from cifar_pipeline.config.schema import validate
from helpers.config_project import Project
from helpers.docs import PAGES, ROOT, SHELL_ENV, commands, name_of, read
from helpers.source_tree import PUBLISHED

# By file: the test that runs a command (or a text of another file that does), and the pattern of the whole command.
BY_FILE = {
    "tests/pipeline/test_first_run.py": {
        "test_every_stage_runs_and_leaves_its_outputs": "dvc repro( train| preprocess)?",
        "test_fallback_data_is_labeled_everywhere": "python src/report.py summary",
    },
    "tests/pipeline/test_typed_commands.py": {
        "test_stages_are_run_by_force": r"dvc repro (-f|--force --single-item) \w+",
        "test_experiments_are_compared_kept_and_left": (
            "python src/report.py experiments|dvc (params diff|metrics diff)( main)?|dvc exp apply NAME|"
            "git restore .*|dvc checkout"
        ),
        "test_a_cleared_cache_keeps_what_the_workspace_needs": "dvc gc --workspace",
        "test_help_lists_the_options": "python src/train.py --help",
    },
    "tests/pipeline/test_experiments.py": {
        "test_an_experiment_of_dvc_is_one_more_run": r"dvc exp run( -S \S+)+",
    },
    "tests/pipeline/test_custom_images.py": {
        "test_an_unpacked_archive_needs_no_git": "dvc config --local core.no_scm true",
    },
    "tests/pipeline/test_dvc_reruns.py": {
        "test_an_interrupted_training_changes_train_alone_and_the_next_repro_completes_it": "dvc status",
        "test_dvc_shows_metrics_plots_and_the_graph": "dvc plots show",
    },
    "tests/pipeline/test_versioned_data.py": {
        "test_added_images_are_a_version_of_each_commit": r"dvc add( \S+)?",
        "test_an_imported_table_is_updated": r"dvc import-url \S+/labels.csv \S+",
        "test_an_imported_folder_is_updated": r"rm -r images|dvc import-url( \S+ images)?|dvc update( images.dvc)?",
        "test_another_folder_gets_the_model_by_path_and_by_tag": (
            r"dvc get( \S+ models -o model)?|dvc artifacts get( \S+ model --stage prod -o model)?|"
            r"python src/predict.py --model model cat.jpg|gto (register|assign) model --version v1.0.0( --stage prod)?"
        ),
    },
    "tests/pipeline/test_shared_results.py": {
        "test_a_colleague_has_the_results_from_a_shared_folder_without_training": (
            r"dvc (push|pull)|dvc remote add --default storage \S+"
        ),
        "test_a_colleague_has_the_results_from_an_s3_server_without_training": "dvc remote modify --local",
    },
    "tests/commands/test_new_code.py": {
        "test_it_names_what_it_wrote_and_the_command_that_tries_it": r"python src/new.py( \w+ \w+)?",
    },
    "tests/commands/test_started_scripts.py": {
        "test_showing_the_configuration_loads_nothing_heavy": "python src/train.py --cfg job",
        "test_the_shell_completes_the_keys_and_options_of_every_stage": (
            r'eval "\$\(python src/train.py -sc install=bash\)"'
        ),
    },
    "tests/crash_recovery/test_killed_stages.py": {
        "test_evaluate_leaves_every_report_as_it_was": "python src/train.py experiment=debug",
    },
    "tests/models/test_pretrained.py": {
        "test_a_training_starts_where_an_earlier_one_has_ended": (
            r"python src/train.py experiment=finetune finetune=\w+ model.weights=models/best( optimizer.lr=\S+)?"
        ),
    },
    "tests/pipeline/test_training_by_hand.py": {
        "test_stopped_twice_it_ends_with_the_weights_of_the_undisturbed_stage": "python src/train.py( rerun=true)?",
        "test_an_augmentation_is_named_and_shown_beside_the_originals": r"python src/train.py( augmentation\S+)+",
    },
    "tests/crash_recovery/test_several_processes.py": {
        "test_two_ranks_train_to_the_numbers_of_one_in_one_run_with_one_output": (
            r"python src/train.py trainer.devices=2"
        ),
        "test_a_frozen_network_has_the_same_head_from_two_processes": (
            r"python src/train.py experiment=finetune finetune=\w+( model.name=\w+)?( optimizer.lr=\S+)?"
        ),
    },
    "tests/training/test_finders.py": {
        "test_find_lr_prints_the_suggestion_as_configuration_and_writes_only_its_reports": r"python src/find_lr.py.*",
        "test_auto_trains_with_the_number_that_it_prints_and_is_the_training_with_that_number": (
            r"python src/train.py trainer.batch_size=auto.*"
        ),
    },
    "tests/training/test_train_options.py": {
        "test_several_loggers_have_the_numbers_of_history_csv": (
            r"python src/train.py ('?logger=\S+|.*runtime\.log_every_n_steps=\d+)|tensorboard --logdir \S+"
        ),
        "test_max_time_leaves_a_finished_model_that_can_be_evaluated": r"python src/train.py trainer\.\S+ ?\S*",
        "test_a_metric_that_a_callback_logs_reaches_each_logger_once": (
            r"python src/train.py .*(\+?callbacks|monitor)\S*=.*|python src/train.py precision=bf16"
        ),
    },
    "tests/training/test_mlflow_settings.py": {
        "test_the_experiment_is_the_variables_unless_the_command_line_or_params_name_another": (
            r"MLFLOW_EXPERIMENT_NAME=\w+ python src/train.py"
        ),
        "test_tags_and_description_are_set_also_on_a_finished_training": r"python src/train.py( mlflow\.\S+)+",
        "test_system_metrics_are_logged_where_they_are_switched_on": (
            "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING=true python src/train.py"
        ),
    },
    "tests/tracking/test_ui.py": {
        "test_the_address_is_printed_when_the_page_answers": r"python src/ui.py( --port \d+)?",
    },
    "tests/environment_failures/test_login.py": {
        "test_a_training_needs_a_login_with_permission": "mlflow server --app-name basic-auth",
    },
    "tests/training/test_profile.py": {
        "test_a_profile_names_what_took_the_time": r"python src/train.py rerun=true runtime.profiler=\w+",
    },
    "tests/sweeps/test_search.py": {
        "test_an_interrupted_search_continues_and_a_larger_number_adds_trials": (
            r"python src/train.py -m sweep=search( \S+=\S+)*"
        ),
    },
    "tests/sweeps/test_a_sweep.py": {
        "test_a_sweep_is_one_run_with_its_jobs_as_children": r"python src/train.py -m (\S+=\S+ ?)+",
    },
    "tests/sweeps/test_data_of_trials.py": {
        "test_each_fold_is_made_once_and_is_the_data_of_its_trials": r"python src/train.py -m .*data.fold=range.*",
    },
    "tests/pipeline/test_after_the_training.py": {
        "test_a_better_model_becomes_the_champion_and_can_be_rolled_back": (
            r"python src/(registry.py (list|rollback|promote( RUN)?)|report.py sweep)"
        ),
    },
    "tests/inference/test_predict_script.py": {
        "test_predict_prints_a_table_and_a_line_for_the_bad_file": "python src/predict.py.*",
    },
    "tests/inference/test_evaluate_data.py": {
        "test_the_predictions_are_those_of_predict_and_the_numbers_those_of_a_count_by_hand": (
            r"python src/evaluate.py( --model \S+)+ --data \S+"
        ),
    },
    "tests/inference/test_server.py": {
        "test_the_server_predicts_as_predict_does": r"python src/serve.py( --model \S+)?",
        "test_the_documented_curl_works": "python -c .*|curl .*",
        "test_mlflows_server_serves_the_folder": "mlflow models serve -m exported --env-manager local",
    },
    "tests/inference/test_browser.py": {
        "test_the_page_predicts_as_predict_does": "python -m http.server --directory exported",
    },
    "tests/inference/test_portable.py": {
        "test_export_copies_the_model_and_prints_how_to_use_it": "python src/export.py( --pt2)?",
    },
    "tests/config/test_schemas.py": {
        "test_the_schemas_are_written_and_stale_ones_removed": "python src/build_docs.py",
    },
    "tests/crash_recovery/test_killed_trainings.py": {
        "test_twenty_random_kills_change_nothing": r"python tests/crash_recovery/torture.py --count \d+",
    },
    "tests/benchmarks/test_measuring.py": {
        "test_every_section_runs": r"python benchmarks/(run|tutorial_loop|larger_than_memory)\.py.*",
    },
    "tests/benchmarks/test_speedrun.py": {
        "test_every_recipe_runs": r"python benchmarks/speedrun.py .*",
    },
    "tests/benchmarks/test_verify.py": {
        "test_a_published_row_is_verified": r"python benchmarks/verify.py \S+",
    },
    "tests/benchmarks/test_finetuning.py": {
        "test_every_method_is_trained": r"python benchmarks/finetuning.py.*",
    },
    "tests/benchmarks/test_augmentation_speed.py": {
        "test_each_augmentation_and_loader_has_a_row": r"python benchmarks/augmentation_speed\.py.*",
    },
    "tests/benchmarks/test_reproducibility.py": {
        "test_every_pair_is_trained": "python benchmarks/reproducibility.py.*",
    },
    "tests/benchmarks/test_sweep_overhead.py": {
        "test_both_ways_are_measured_on_both_launchers": "python benchmarks/sweep_overhead.py",
    },
    "tests/benchmarks/test_sweep_storage.py": {
        "test_a_trial_adds_rows_bytes_and_a_file": "python benchmarks/sweep_storage.py",
    },
    "tests/reporting/test_results_table.py": {
        "test_without_evaluated_runs_there_is_no_table": "python src/report.py results-table",
    },
    "tests/test_site_cache.py": {
        "test_a_pickle_planted_in_the_shared_folder_is_not_loaded": (
            r"install -d -m 700 ~/\.cache/dvc-site|dvc config --local core\.site_cache_dir ~/\.cache/dvc-site"
        ),
    },
    "tests/test_commands.py": {"test_every_documented_command_is_run_by_a_test": "python -m pytest.*"},
    "tests/test_project_files.py": {"test_help_names_every_target": "make help"},
    "tests/adoption/test_adopt.py": {
        "test_one_commit_changes_what_the_dry_run_lists": r"python src/adopt.py \S+( --keep \S+)?( --dry-run)?",
    },
    "tests/adoption/test_update.py": {
        "test_the_library_arrives_and_nothing_else_comes_back": r"python src/update.py( \S+)?",
    },
    ".ci/run": {
        "make check": "ruff (format|check) ?(--check|--fix)?|mypy src",
        "make setup": "make setup",
    },
    "Makefile": {
        "-m venv ": "python3 -m venv .venv",
        "--constraint constraints.txt --editable": "pip install --constraint constraints.txt --editable .*",
    },
}
PATTERNS = {pattern: (file, words) for file, held in BY_FILE.items() for words, pattern in held.items()}
# Run manually and by no test, each with the reason.
BY_HAND = {
    r"source .venv/bin/activate": "it changes the shell that it is typed in",
    r"uv .*": "uv is not in the environment: it would install another one",
    r"pip install (jax|--editable '.\[ray\]')": "it would change the environment that the tests run in",
    r"docker .*": "it needs a daemon and a registry; tests/test_project_files.py reads the Dockerfile",
    r"mlflow models (build-docker|generate-dockerfile).*": "it needs a daemon; docs/scaling.md says what was tried",
    r"pre-commit install": "it writes into .git; `pre-commit run --all-files` runs the hooks",
    r"python benchmarks/tutorial_accuracy.py 10 11 12": "it trains on the real data for minutes, three times",
    r"git (add|commit|push|pull|clone|checkout|merge|reset).*": "git's own",
}
OVERRIDES = re.compile(r"python src/train.py (?!--|-sc)(.+)|dvc exp run (.+)")

# The changelog keeps the commands of the past.
PAIRS = [
    (name_of(page), command)
    for page in PAGES
    if page.name != "CHANGELOG.md"
    for command in dict.fromkeys(commands(read(page)))
]


@cache
def expanded(command: str) -> tuple[str, ...]:
    """Split a line into simple commands; `make x` into those of its recipe, as `make --dry-run` prints them."""
    if command.startswith("make adopt"):  # It runs the script with make's --dry-run as well.
        return ("python src/adopt.py flowers",)
    if command.startswith("make") and command not in ("make setup", "make help"):
        words = command.replace(" setup", "").split()
        printed = subprocess.run(
            [*words, "--dry-run", "--old-file=.venv/.set-up"],
            cwd=ROOT,
            env=SHELL_ENV,
            capture_output=True,
            text=True,
            check=True,
        )
        assert printed.stdout.strip(), f"{command} does nothing"
        parts = re.split(r"&&|\|\||;|\n|[{}]", printed.stdout)
        return tuple(
            part.strip() for part in parts if not re.match(r"(echo|test|touch|rm|ls|cat|mkdir|2?>|$)", part.strip())
        )
    if command.startswith("python -c"):
        return (command,)
    return tuple(part.strip() for part in re.split(r"&&|\|(?!\|)", command) if part.strip())


def test_every_documented_command_is_run_by_a_test() -> None:
    for page, command in PAIRS:
        for simple in expanded(command):
            holders = [pattern for pattern in (*PATTERNS, *BY_HAND) if re.fullmatch(pattern, simple, re.DOTALL)]
            assert holders, f"{page}: no test is known to run `{simple}`"
            for script in re.findall(r"python ([\w/]+\.py)", simple):
                assert (ROOT / script).is_file(), f"{page}: {command}"


def test_every_test_that_runs_a_command_exists() -> None:
    for file, words in PATTERNS.values():
        text = (ROOT / file).read_text(encoding="utf-8")
        assert (f"\ndef {words}(" if file.startswith("tests/") else words) in text, f"{file}: {words}"


def test_every_listed_command_is_documented() -> None:
    documented = {simple for _, command in PAIRS for simple in expanded(command)}
    assert {
        pattern for pattern in (*PATTERNS, *BY_HAND) if not any(re.fullmatch(pattern, one, re.S) for one in documented)
    } == set()


# Each command once, with the pages that have it.
WITH_VALUES = {
    command: [page for page, other in PAIRS if other == command] for _, command in PAIRS if OVERRIDES.fullmatch(command)
}


@cache
def validated(*words: str) -> bool:
    """Compose and validate the published configuration with these overrides, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(PUBLISHED)
        validate(compose_config([*words]))
    return True


@pytest.mark.parametrize("command", WITH_VALUES)
def test_the_values_of_a_documented_command_compose(command: str, project: Project) -> None:
    match = OVERRIDES.fullmatch(command)
    assert match
    arguments = shlex.split(match[1] or match[2])
    words = [word.removeprefix("++overrides.") for word in arguments if word not in ("-m", "-S")]
    if not {"-m", "-S"} & {*arguments}:
        assert validated(*words), WITH_VALUES[command]
        return
    if "sweep=search" in words:  # All of its values are checked before its storage is opened.
        ended = project.start(train, "-m", *words, "hydra.sweeper.storage=nowhere")
        ended.assert_refused("hydra.sweeper.storage cannot be opened")
        return
    created_options = [
        word for word in words if "docs/extending.md" in WITH_VALUES[command] and is_created_by_the_page(word)
    ]
    parsed = OverridesParser.create().parse_overrides(
        [word for word in words if word not in created_options and not word.startswith("hydra")]
    )
    fixed = [
        override.input_line
        for override in parsed
        if not override.is_sweep_override() and override.get_key_element() != "sweep"
    ]
    for override in parsed:
        if override.get_key_element() == "sweep":
            assert (project.folder / "conf" / "sweep" / f"{override.value()}.yaml").is_file()
    assert validated(*fixed)
    for override in parsed:
        if override.is_sweep_override():
            for value in override.sweep_string_iterator():
                assert validated(*fixed, f"{override.get_key_element()}={value}")


def train(config: object) -> None:
    """Never called."""


def is_created_by_the_page(word: str) -> bool:
    """Whether docs/extending.md creates this option; tests/pipeline/test_your_own.py runs those."""
    group, _, option = word.partition("=")
    return (
        f"conf/{group}/{option}.yaml" in read(ROOT / "docs" / "extending.md")
        and not Path(ROOT / "conf" / group / f"{option}.yaml").is_file()
    )
