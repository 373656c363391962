"""Export a model as files that run without this project: `python src/export.py`, or `make export`."""

import logging
from pathlib import Path

from cifar_pipeline.cli.entrypoint import argument_parser, run_script
from cifar_pipeline.config.compose import load_config

log = logging.getLogger(__name__)


def export() -> None:
    parser = argument_parser((__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--model", help="a folder, models:/cifar10@champion or runs:/RUN/last (default: conf/predict/)")
    parser.add_argument("--rev", default="", help="use the model of this tag, branch or commit from DVC")
    parser.add_argument("--to", type=Path, default=Path("exported"), help="folder for model.onnx and index.html")
    parser.add_argument(
        "--pt2", action="store_true", help="also write model.pt2, torch's format, for users who trust you"
    )
    args, config = parser.parse_args(), load_config()
    # Imported here, so that `--help` and invalid values do not wait for it.
    from cifar_pipeline.inference.portable import export_portable
    from cifar_pipeline.tracking.model_uri import resolve_model
    from cifar_pipeline.utils.atomic import require_writable

    require_writable(args.to)
    with resolve_model(args.model or config.predict.model, args.rev, config.evaluation.checkpoint) as folder:
        written = export_portable(folder, args.to)
        if args.pt2:
            from cifar_pipeline.inference.metadata import ModelMetadata
            from cifar_pipeline.inference.portable import write_pt2
            from cifar_pipeline.models.build import build_bare_model, build_inference_model

            metadata = ModelMetadata.read(folder)
            model = build_inference_model(build_bare_model(config, metadata, metadata.network), config)
            written.append(write_pt2(folder, model, args.to))
    files = ", ".join(map(str, written))
    log.info(f"Wrote {files}. The model takes images and returns probabilities; class names are inside.")
    log.info(
        f"To use it in a browser, run `python -m http.server --directory {args.to}` and open http://127.0.0.1:8000."
    )


if __name__ == "__main__":
    run_script(export)
