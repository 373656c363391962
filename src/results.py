"""Make the table of results: each recipe of conf/experiment/ as it stands, over the seeds that were measured.

`python src/results.py`, or `make results`, prints it and writes it into README.md and README.zh-CN.md. It is made of
MLflow's database: `dvc exp run -S experiment=quick -S seed=1` puts one more result there. A row that this database has
nothing about stays.
"""

import argparse
from pathlib import Path

from cifar_pipeline.cli.entrypoint import run_script

PAGES = {"en": Path("README.md"), "zh": Path("README.zh-CN.md")}
NO_VAL = "data.val_fraction=0"


def results() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--print", action="store_true", dest="print_only", help="write no page")
    options = parser.parse_args()
    # Imported here, because `--help` and a refusal should answer at once.
    from cifar_pipeline.config.compose import experiments
    from cifar_pipeline.reporting.summary import Result, print_results, write_results
    from cifar_pipeline.tracking.runs import list_evaluated_runs, result_params
    from cifar_pipeline.utils.atomic import require_writable
    from cifar_pipeline.utils.console import info
    from cifar_pipeline.utils.errors import UserError

    for page in PAGES.values() if not options.print_only else ():
        require_writable(page, is_file=True)
    trainings = list_evaluated_runs("cifar10")
    found = []
    for recipe in experiments([[], [NO_VAL]]):
        own = [training for training in trainings if training.values == result_params(recipe.values)]
        for hardware in dict.fromkeys(training.hardware for training in own):
            there = [training for training in own if training.hardware == hardware]
            found.append(Result(recipe.command, NO_VAL not in recipe.overrides, recipe.target, there))
    if not found:
        raise UserError("No recipe of conf/experiment/ has been measured as it stands: `dvc exp run` measures one.")
    found.sort(key=lambda result: result.accuracy)
    print_results(found)
    if not options.print_only:
        kept = max(write_results(found, page, language) for language, page in PAGES.items())
        info(f"Written into {' and '.join(map(str, PAGES.values()))}; rows of other machines that stay: {kept}.")


if __name__ == "__main__":
    run_script(results)
