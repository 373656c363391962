"""Classify images: `python src/predict.py cat.png dog.jpg folder/`, or `find ... | python src/predict.py -`.

Exit code 0: all files were classified; 1: some could not be read, each with a line naming the reason; 2: invalid input.
"""

import argparse
import io
import logging
import sys
from pathlib import Path

from cifar_pipeline.cli.entrypoint import argument_parser, run_script
from cifar_pipeline.config.compose import load_config

log = logging.getLogger(__name__)


def arguments() -> argparse.Namespace:
    parser = argument_parser((__doc__ or "").partition(":")[0] + ".")
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="images, folders of images, or - to read paths from standard input"
    )
    parser.add_argument("--model", help="a folder, models:/cifar10@champion or runs:/RUN/last (default: conf/predict/)")
    parser.add_argument("--rev", default="", help="use the model of this tag, branch or commit from DVC")
    parser.add_argument("--top", type=int, help="number of classes to show for each image (default: conf/predict/)")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="print one line of JSON for each file")
    output.add_argument("--csv", metavar="FILE", type=Path, help="write one row for each file to this CSV file")
    return parser.parse_args()


def predict() -> int:
    args, config = arguments(), load_config()
    # Imported here, so that `--help` and invalid values do not wait for it.
    from cifar_pipeline.config.compose import available_cores
    from cifar_pipeline.data.image_paths import STDIN, SkipCounts, count_image_files, iter_image_files, iter_lines
    from cifar_pipeline.data.images import set_max_megapixels
    from cifar_pipeline.inference.predictor import Predictor, threads_for
    from cifar_pipeline.reporting.tables import print_json, print_table, with_progress, write_csv
    from cifar_pipeline.tracking.model_uri import resolve_model
    from cifar_pipeline.utils.atomic import require_writable
    from cifar_pipeline.utils.errors import UserError
    from cifar_pipeline.utils.text import count_noun

    # None where the shell has closed it, as `<&-` does.
    if sys.stdin is None and STDIN in args.files:
        raise UserError(
            "- reads paths from standard input, which is closed: pipe them in, as `find images | ...` does."
        )
    stdin = io.BytesIO() if sys.stdin is None else sys.stdin.buffer
    if args.csv:
        require_writable(args.csv, is_file=True)
    options = config.predict
    set_max_megapixels(options.max_megapixels, "predict.max_megapixels")
    # One core is reserved for the thread that reads the files.
    threads = threads_for(config.runtime.threads, available_cores(), reader_threads=1)
    model_uri = args.model or options.model
    with resolve_model(model_uri, args.rev, config.evaluation.checkpoint) as folder:
        predictor = Predictor.open(folder, threads, config.runtime.accelerator)
    top_k = predictor.resolve_top_k(args.top, options.top_k)
    skipped = SkipCounts()
    files = iter_image_files(
        args.files, iter_lines(stdin), lambda unusable: skipped.add(str(unusable.path), unusable.reason)
    )
    predictions = predictor.predictions(files, options.batch_size, top_k)
    results = with_progress(predictions, count_image_files(args.files), options.batch_size)
    if args.json:
        failed = print_json(results)
    elif args.csv:
        failed = write_csv(results, args.csv, top_k)
        if args.csv.is_file():  # not a pipe or device
            log.info(f"Wrote the predictions to {args.csv}.")
    else:
        log.info(f"Model: {model_uri}{args.rev and f' of {args.rev}'}, trained on {predictor.metadata.dataset}")
        failed = print_table(results, top_k)
    if skipped:
        log.warning(
            f"Skipped in folders: {count_noun(len(skipped), 'file')}, such as {skipped.named()[0][0]}: {skipped}."
        )
    return 1 if failed else 0


if __name__ == "__main__":
    run_script(predict)
