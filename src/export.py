"""Write a model as files that run without this project: `python src/export.py`, or `make export`."""

import argparse
from pathlib import Path

from cifar_pipeline.commands.script import configuration, run_script


def export() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--model", help="a folder, models:/cifar10@champion or runs:/RUN/last (conf/predict/)")
    parser.add_argument("--rev", default="", help="the model that DVC keeps for this tag, branch or commit")
    parser.add_argument("--to", type=Path, default=Path("exported"), help="the folder for model.onnx and index.html")
    parser.add_argument("--pt2", action="store_true", help="model.pt2 as well: torch's format, for those who trust you")
    asked, config = parser.parse_args(), configuration()
    # Imported here, because `--help` and a refusal should answer at once.
    from cifar_pipeline.console import say
    from cifar_pipeline.files import require_writable
    from cifar_pipeline.inference.portable import write_portable
    from cifar_pipeline.tracking.addresses import model_folder

    require_writable(asked.to)
    with model_folder(asked.model or config.predict.model, asked.rev, config.evaluate.checkpoint) as folder:
        written = write_portable(folder, asked.to)
        if asked.pt2:
            from cifar_pipeline.inference.facts import ModelFacts
            from cifar_pipeline.inference.portable import write_pt2
            from cifar_pipeline.training.networks import bare_network, build_deployed

            facts = ModelFacts.read(folder)
            written.append(write_pt2(folder, build_deployed(bare_network(config, facts), config, facts), asked.to))
    say(f"Written: {', '.join(map(str, written))}; pictures in, probabilities out, class names inside.")
    say(f"In a browser: `python -m http.server --directory {asked.to}`, then http://127.0.0.1:8000.")


if __name__ == "__main__":
    run_script(export)
