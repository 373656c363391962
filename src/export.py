"""Write a model as files that run without this project: `python src/export.py`, or `make export`."""

import argparse
from pathlib import Path

from cifar_pipeline.cli.entrypoint import load_config, run_script


def export() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--model", help="a folder, models:/cifar10@champion or runs:/RUN/last (conf/predict/)")
    parser.add_argument("--rev", default="", help="the model that DVC keeps for this tag, branch or commit")
    parser.add_argument("--to", type=Path, default=Path("exported"), help="the folder for model.onnx and index.html")
    parser.add_argument("--pt2", action="store_true", help="model.pt2 as well: torch's format, for those who trust you")
    asked, config = parser.parse_args(), load_config()
    # Imported here, because `--help` and a refusal should answer at once.
    from cifar_pipeline.inference.onnx_export import export_portable
    from cifar_pipeline.tracking.model_uri import resolve_model
    from cifar_pipeline.utils.atomic import require_writable
    from cifar_pipeline.utils.console import info

    require_writable(asked.to)
    with resolve_model(asked.model or config.predict.model, asked.rev, config.evaluation.checkpoint) as folder:
        written = export_portable(folder, asked.to)
        if asked.pt2:
            from cifar_pipeline.inference.metadata import ModelMetadata
            from cifar_pipeline.inference.onnx_export import write_pt2
            from cifar_pipeline.models.build import build_bare_model, build_inference_model

            facts = ModelMetadata.read(folder)
            written.append(
                write_pt2(folder, build_inference_model(build_bare_model(config, facts), config, facts), asked.to)
            )
    info(f"Written: {', '.join(map(str, written))}; images in, probabilities out, class names inside.")
    info(f"In a browser: `python -m http.server --directory {asked.to}`, then http://127.0.0.1:8000.")


if __name__ == "__main__":
    run_script(export)
