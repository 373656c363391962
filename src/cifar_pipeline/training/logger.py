"""Lightning's MLFlowLogger on a run that somebody else opens and ends."""

from collections.abc import Mapping

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_pipeline.training.history import Row, metrics_of


class RunLogger(MLFlowLogger):
    """Logs to the run `run_id`; steps up to `logged` stand there already, from before a training was broken off."""

    def __init__(self, tracking_uri: str, run_id: str, logged: int) -> None:
        super().__init__(tracking_uri=tracking_uri, run_id=run_id)
        self.logged = logged

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if step is None or step > self.logged:
            super().log_metrics(metrics, step)

    def log_rows(self, rows: list[Row]) -> None:
        """Log those epochs of a training that has finished before which this run does not have."""
        for row in rows:
            self.log_metrics(*metrics_of(row))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Leave the run open: models and figures are still to come when Lightning is done."""
