"""Serve the champion over HTTP: MLflow's scoring protocol, on the host and port of conf/serve/."""

from cifar_pipeline.cli.entrypoint import argument_parser, run_script
from cifar_pipeline.config.compose import load_config


def serve() -> None:
    parser = argument_parser((__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--model", help="a folder, models:/NAME/NUMBER or runs:/RUN/last (default: the champion)")
    args, config = parser.parse_args(), load_config()
    # Imported here, so that `--help` and invalid values do not wait for it.
    from pathlib import Path

    from cifar_pipeline.config.compose import available_cores
    from cifar_pipeline.inference.predictor import threads_for
    from cifar_pipeline.inference.server import bind, open_predictor, serve
    from cifar_pipeline.tracking.model_uri import resolve_model

    listener = bind(config.serve.host, config.serve.port)
    model, runtime = args.model, config.runtime
    if not model:
        # Imported here: MLflow takes seconds, and a model in a folder does not need it.
        from cifar_pipeline.tracking.champion import PromotionPolicy, pipeline_dataset_name

        model = PromotionPolicy.of(config.registry, pipeline_dataset_name(Path("models"))).champion
    with resolve_model(model, "", config.evaluation.checkpoint) as folder:
        predictor = open_predictor(folder, threads_for(runtime.threads, available_cores()), runtime.accelerator)
    serve(predictor, model, listener, config.serve.max_images)


if __name__ == "__main__":
    run_script(serve)
