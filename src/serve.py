"""Answer for pictures over HTTP: the champion behind MLflow's scoring server, on the host and port of conf/serve/."""

import argparse

from cifar_pipeline.commands.script import configuration, run_script


def serve() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--model", help="a folder, models:/NAME/NUMBER or runs:/RUN/last; the champion without")
    asked, config = parser.parse_args(), configuration()
    # Imported here, because `--help` and a refusal should answer at once.
    from pathlib import Path

    from cifar_pipeline.inference.served import answer, listen_on
    from cifar_pipeline.tracking.addresses import model_folder
    from cifar_pipeline.tracking.candidates import data_of_pipeline
    from cifar_pipeline.tracking.champions import Rule

    listener = listen_on(config.serve.host, config.serve.port)
    model = asked.model or Rule.of(config.registry, data_of_pipeline(Path("models"))).champion
    with model_folder(model, "", config.evaluate.checkpoint) as folder:
        answer(folder, model, listener, config.serve.most_pictures)


if __name__ == "__main__":
    run_script(serve)
