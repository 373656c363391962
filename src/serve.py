"""Answer for pictures over HTTP with the champion, in MLflow's protocol, on the host and port of conf/serve/."""

import argparse

from cifar_pipeline.commands.script import configuration, run_script


def serve() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--model", help="a folder, models:/NAME/NUMBER or runs:/RUN/last; the champion without")
    asked, config = parser.parse_args(), configuration()
    # Imported here, because `--help` and a refusal should answer at once.
    from pathlib import Path

    from cifar_pipeline.config.start import cores
    from cifar_pipeline.inference.predictor import threads_for
    from cifar_pipeline.inference.served import answer, listen_on, open_served
    from cifar_pipeline.tracking.addresses import model_folder

    listener = listen_on(config.serve.host, config.serve.port)
    model, machine = asked.model, config.machine
    if not model:
        # Imported here, because MLflow takes seconds that a model in a folder doesn't need.
        from cifar_pipeline.tracking.candidates import data_of_pipeline
        from cifar_pipeline.tracking.champions import Rule

        model = Rule.of(config.registry, data_of_pipeline(Path("models"))).champion
    with model_folder(model, "", config.evaluate.checkpoint) as folder:
        predictor = open_served(folder, threads_for(machine.threads, cores()), machine.accelerator)
    answer(predictor, model, listener, config.serve.most_pictures)


if __name__ == "__main__":
    run_script(serve)
