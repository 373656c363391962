"""Train the first seed of a published row, and compare the result with the published ones.

    make verify ROW=quick        (python benchmarks/verify.py quick)

It says whether the test accuracy is within the published spread, whether equal bits were to be expected here, and what
differs (processor, threads, engine, versions, code). Exit code 1 if the result contradicts the published ones.
"""

import environment  # noqa: F401

# isort: split

import sys
from argparse import ArgumentParser

from measure import CommandFailed, machine, say
from published_rows import CONFIDENCE, PublishedRow, make_row, published_row
from run import Sizes, commit, copy_of_the_project
from speedrun import RECIPES, run_seed
from train_and_evaluate import prepare, require_cifar10


def verdict(published: PublishedRow, here: PublishedRow) -> tuple[bool, list[str]]:
    """Compare the result of the first seed with the published row: whether it agrees, and the lines to print."""
    expected, result = published.results[0], here.results[0]
    low, high = published.prediction_interval()
    is_within, are_equal = low <= result.accuracy <= high, result.weights == expected.weights
    differences = published.differences(here)
    lines = [
        f"Published  {expected.accuracy:.2f} % with seed {expected.seed}; {published.spread()}, at {published.commit}",
        f"Here       {result.accuracy:.2f} % with seed {result.seed}, at {here.commit}",
        f"Spread     {'within' if is_within else 'OUTSIDE'} {low:.2f} to {high:.2f} %, between which another training "
        f"lies with a probability of {CONFIDENCE:.0%}",
    ]
    if not differences:
        outcome = "and they are equal" if are_equal else "BUT THE WEIGHTS DIFFER: please report it"
        lines.append(f"Bits       expected to be equal (same processor, threads, engine, versions, code), {outcome}")
        return is_within and are_equal, lines
    lines.append(f"Bits       not expected to be equal; the weights {'are equal' if are_equal else 'differ'}")
    return is_within, lines + [f"Differs    {difference}" for difference in differences]


def main() -> int:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("row", help="a recipe with a row in reports/speedrun.json")
    published = published_row(arguments.parse_args().row)
    hardware, recipe, first = machine(), RECIPES[published.recipe], published.results[0]
    say(f"{hardware['processor']}, {hardware['cores']} cores, commit {commit()}")
    say(f"Training seed {first.seed} of {published.recipe}; it took {first.seconds:.0f} s when the row was published.")
    with copy_of_the_project(Sizes()) as workspace:
        require_cifar10(workspace, Sizes())
        try:
            prepare(workspace, recipe.overrides)
            measured = run_seed(workspace, recipe, first.seed)
        except CommandFailed as failure:
            say(f"  FAILED: {failure}")
            return 1
    agrees, lines = verdict(
        published, make_row(published.recipe, commit(), hardware["versions"], {first.seed: measured})
    )
    print("\n".join(lines))
    return 0 if agrees else 1


if __name__ == "__main__":
    sys.exit(main())
