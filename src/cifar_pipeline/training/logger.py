"""Lightning's MLFlowLogger on a run that somebody else opens and ends."""

from collections.abc import Mapping

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from cifar_pipeline.console import warn
from cifar_pipeline.faults import fault_sentence
from cifar_pipeline.training.history import Row, metrics_of


class RunLogger(MLFlowLogger):
    """Logs to the run `run_id`; steps up to `logged` stand there already, from before a training was broken off."""

    def __init__(self, tracking_uri: str, run_id: str, logged: int) -> None:
        super().__init__(tracking_uri=tracking_uri, run_id=run_id)
        self.logged = logged
        self.unsent: list[tuple[Mapping[str, float], int | None]] = []

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Send them, or keep them until the store answers again: what it can't take stops no training."""
        if step is not None and step <= self.logged:
            return
        self.unsent.append((metrics, step))
        try:
            self.send_kept()
        except Exception as error:
            fault = fault_sentence(error)
            if fault is None:
                raise
            if len(self.unsent) == 1:
                warn(f"{fault} The training goes on, and its metrics are kept until they can be sent.")

    def send_kept(self) -> None:
        """Send what is still kept. Raises whatever keeps the store from taking it."""
        while self.unsent:
            super().log_metrics(*self.unsent[0])
            del self.unsent[0]

    def log_rows(self, rows: list[Row]) -> None:
        """Log those epochs of before which this run does not have."""
        for row in rows:
            self.log_metrics(*metrics_of(row))

    @rank_zero_only
    def finalize(self, status: str = "success") -> None:
        """Leave the run open: models and figures are still to come when Lightning is done."""
