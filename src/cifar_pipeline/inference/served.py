"""A model behind MLflow's scoring server: its JSON in, classes with probabilities out, unfit pictures refused.

MLflow casts what it receives to the type in a model's signature before the model sees it: to uint8, a picture scaled to
[0, 1] would become black without a word. So what is served takes float64, which keeps every number as it was sent, and
the numbers are looked at here.
"""

import gc
import logging
import os
import socket
import warnings
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from cifar_pipeline.console import Refusal, say
from cifar_pipeline.inference.facts import ModelFacts
from cifar_pipeline.inference.limits import LimitedRequests, bytes_of_pictures
from cifar_pipeline.inference.predictor import Prediction, Predictor

WHITE = 255


def listen_on(host: str, port: int) -> socket.socket:
    """Take hold of the port, so that requests wait for the answers. Raises `Refusal` where that is impossible."""
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        remedy = "`overrides: {serve: {port: 5002}}` in params.yaml names another port"
        raise Refusal(f"{host}:{port} can't be listened on ({reason}): {remedy}.") from None
    # Inherited by each connection: without it, a client that keeps its connection waits 40 ms for each answer.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def answer(model: Path, name: str, listener: socket.socket, most_pictures: int) -> None:
    """Answer for the model in a folder until somebody stops it: MLflow's scoring server, in this process.

    A request may be as large as `most_pictures` pictures are in JSON.
    """
    import uvicorn
    from mlflow.pyfunc import load_model
    from mlflow.pyfunc.scoring_server import init

    with TemporaryDirectory(prefix="served-") as place:
        write_served(model, Path(place) / "model")
        app = init(load_model(str(Path(place) / "model")))
    hint = (
        f"send at most {most_pictures} pictures at once, without indentation, or let "
        "`overrides: {serve: {most_pictures: ...}}` in params.yaml allow more."
    )
    limited = LimitedRequests(app, bytes_of_pictures(most_pictures, ModelFacts.read(model).shape), hint=hint)
    # The server repeats in each refusal what was sent: some thousand numbers before the sentence that matters.
    np.set_printoptions(threshold=0, edgeitems=0)
    forget_garbage_of_start_up()
    host, port = listener.getsockname()[:2]
    say(f"Answering for {name} on http://{host}:{port}/invocations; Ctrl-C ends it.")
    uvicorn.Server(uvicorn.Config(limited, log_level="warning")).run(sockets=[listener])


def forget_garbage_of_start_up() -> None:
    """Let the garbage collector leave out what is there now.

    It would go through all of torch and MLflow again and again, a quarter of a second in which every client waits: a
    picture in JSON is a thousand lists, and their number is what it goes by.
    """
    gc.collect()
    gc.freeze()


def write_served(model: Path, folder: Path) -> None:
    """Write to `folder`, which is not there yet, an MLflow model that answers for `model` as its server asks."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    shape = ModelFacts.read(model).shape
    for name in ("mlflow", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.pyfunc.save_model(
            str(folder),
            loader_module=__name__,
            data_path=str(model),
            signature=ModelSignature(Schema([TensorSpec(np.dtype(np.float64), (-1, *shape))])),
            pip_requirements=[f"mlflow=={version('mlflow')}"],
        )


def _load_pyfunc(path: str) -> "Served":
    """What MLflow calls to load a served model."""
    return Served(Predictor.open(Path(path)))


class Served:
    """A predictor as MLflow asks it."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    def predict(self, pictures: np.ndarray, params: dict[str, Any] | None = None) -> list[dict[str, object]]:
        """For each picture of `[N, H, W, C]` its class, the class's probability, and the probabilities of all."""
        rankings = self.predictor.ranking(raw_pictures(pictures), len(self.predictor.facts.classes))
        return [Prediction("", ranking).as_json() for ranking in rankings]


def raw_pictures(numbers: np.ndarray) -> np.ndarray:
    """Numbers `[N, H, W, C] float64` as raw pictures, uint8.

    Raises:
        MlflowException: they are none, or scaled; the server answers with its sentence and status 400.
    """
    from mlflow.exceptions import MlflowException

    if not len(numbers):
        raise MlflowException.invalid_parameter_value("There is no picture: send a list of at least one.")
    whole = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers <= WHITE)
    brightest = numbers.reshape(len(numbers), -1).max(axis=1)
    if not whole.all() or (brightest == 1).any():
        raise MlflowException.invalid_parameter_value(
            "A picture's pixels are whole numbers from 0 (black) to 255 (white), as they are stored; these are not, or "
            f"they are scaled to [0, 1] (the smallest is {numbers.min():g}, the largest {numbers.max():g}). The model "
            "normalises them itself: send them unscaled."
        )
    return numbers.astype(np.uint8)
