"""MLflow's client with clean texts: no secret is sent, and nothing that a store or a terminal cannot take."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric, Param, Run, RunTag

from cifar_pipeline.redaction import clean


class CleanClient(MlflowClient):
    """A client whose texts are redacted, and whose unsafe characters are escaped, before they are sent."""

    def create_run(
        self, experiment_id: str, start_time: int | None = None, tags: Any = None, run_name: str | None = None
    ) -> Run:
        """Create a run with clean tags and name."""
        return super().create_run(experiment_id, start_time, _clean_values(tags), _clean(run_name))

    def log_batch(
        self,
        run_id: str,
        metrics: Sequence[Metric] = (),
        params: Sequence[Param] = (),
        tags: Sequence[RunTag] = (),
        synchronous: bool | None = None,
    ) -> Any:
        """Log metrics as they are, parameters and tags clean."""
        return super().log_batch(
            run_id,
            metrics,
            [Param(param.key, _clean(param.value)) for param in params],
            [RunTag(tag.key, _clean(tag.value)) for tag in tags],
            synchronous,
        )

    def set_tag(self, run_id: str, key: str, value: Any, synchronous: bool | None = None) -> Any:
        """Set a tag to a clean text."""
        return super().set_tag(run_id, key, _clean(value), synchronous)

    def log_text(self, run_id: str, text: str, artifact_file: str) -> None:
        """Log a clean text as a file."""
        super().log_text(run_id, _clean(text), artifact_file)

    def create_model_version(
        self, name: str, source: str, run_id: str | None = None, tags: Any = None, *arguments: Any, **options: Any
    ) -> Any:
        """Register a version with clean tags."""
        return super().create_model_version(name, source, run_id, _clean_values(tags), *arguments, **options)

    def set_model_version_tag(
        self, name: str, version: str | None = None, key: str | None = None, value: Any = None, stage: str | None = None
    ) -> None:
        """Set a version's tag to a clean text."""
        super().set_model_version_tag(name, version, key, _clean(value), stage)


def _clean(value: Any) -> Any:
    return clean(value) if isinstance(value, str) else value


def _clean_values(values: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {key: _clean(value) for key, value in values.items()} if values is not None else None
