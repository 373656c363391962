"""Say what images show: `python src/predict.py cat.png dog.jpg folder/`, or `find ... | python src/predict.py -`.

Exit code 0: every file was answered for; 1: some could not be read, each with a line that says why; 2: refused.
"""

import argparse
import sys
from pathlib import Path

from cifar_pipeline.cli.entrypoint import load_config, run_script


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("files", nargs="+", metavar="FILE", help="images, folders of them, or - for a list of paths")
    parser.add_argument("--model", help="a folder, models:/cifar10@champion or runs:/RUN/last (conf/predict/)")
    parser.add_argument("--rev", default="", help="the model that DVC keeps for this tag, branch or commit")
    parser.add_argument("--top", type=int, help="how many classes to show for each image (conf/predict/)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="a line of JSON for each file, on standard output")
    output.add_argument("--csv", metavar="FILE", type=Path, help="a row for each file, in this file")
    return parser.parse_args()


def predict() -> int:
    asked, config = arguments(), load_config()
    # Imported here, because `--help` and a refusal should answer at once.
    from cifar_pipeline.config.compose import available_cores
    from cifar_pipeline.data.image_paths import SkipCounts, count_image_files, iter_image_files, iter_lines
    from cifar_pipeline.data.images import set_max_megapixels
    from cifar_pipeline.inference.predictor import Predictor, threads_for
    from cifar_pipeline.reporting.tables import print_json, print_table, with_progress, write_csv
    from cifar_pipeline.tracking.model_uri import resolve_model
    from cifar_pipeline.utils.atomic import require_writable
    from cifar_pipeline.utils.console import info, warning

    if asked.csv:
        require_writable(asked.csv, is_file=True)
    options = config.predict
    set_max_megapixels(options.max_megapixels, "predict.max_megapixels")
    # One core is left to the thread that reads the files.
    threads = threads_for(config.runtime.threads, available_cores(), reading=1)
    address = asked.model or options.model
    with resolve_model(address, asked.rev, config.evaluation.checkpoint) as folder:
        predictor = Predictor.open(folder, threads, config.runtime.accelerator)
    top = predictor.resolve_top_k(asked.top, options.top_k)
    skipped = SkipCounts()
    files = iter_image_files(
        asked.files, iter_lines(sys.stdin.buffer), lambda found: skipped.add(str(found.path), found.reason)
    )
    predictions = predictor.predictions(files, options.batch_size, top)
    shown = with_progress(predictions, count_image_files(asked.files), options.batch_size)
    if asked.json:
        bad = print_json(shown)
    elif asked.csv:
        bad = write_csv(shown, asked.csv, top)
        if asked.csv.is_file():  # and no pipe or device, whose reader sees them
            info(f"The answers are in {asked.csv}.")
    else:
        info(f"Model: {address}{asked.rev and f' of {asked.rev}'}, trained on {predictor.metadata.dataset}")
        bad = print_table(shown, top)
    if skipped:
        warning(f"Skipped in folders: {len(skipped):,} files, such as {skipped.named()[0][0]}: {skipped}.")
    return 1 if bad else 0


if __name__ == "__main__":
    run_script(predict)
