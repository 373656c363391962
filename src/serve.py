"""Answer for images over HTTP with the champion, in MLflow's protocol, on the host and port of conf/serve/."""

import argparse

from cifar_pipeline.cli.entrypoint import load_config, run_script


def serve() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--model", help="a folder, models:/NAME/NUMBER or runs:/RUN/last; the champion without")
    asked, config = parser.parse_args(), load_config()
    # Imported here, because `--help` and a refusal should answer at once.
    from pathlib import Path

    from cifar_pipeline.config.compose import available_cores
    from cifar_pipeline.inference.predictor import threads_for
    from cifar_pipeline.inference.server import bind, open_predictor, serve
    from cifar_pipeline.tracking.model_uri import resolve_model

    listener = bind(config.serve.host, config.serve.port)
    model, machine = asked.model, config.runtime
    if not model:
        # Imported here, because MLflow takes seconds that a model in a folder doesn't need.
        from cifar_pipeline.tracking.champion import PromotionPolicy, pipeline_dataset_name

        model = PromotionPolicy.of(config.registry, pipeline_dataset_name(Path("models"))).champion
    with resolve_model(model, "", config.evaluation.checkpoint) as folder:
        predictor = open_predictor(folder, threads_for(machine.threads, available_cores()), machine.accelerator)
    serve(predictor, model, listener, config.serve.max_images)


if __name__ == "__main__":
    run_script(serve)
