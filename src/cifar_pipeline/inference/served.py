"""Answer for pictures over HTTP, in the protocol of MLflow's scoring server, without MLflow.

    POST /invocations   {"inputs": pictures [N, H, W, C]}, or "instances"; the answer is {"predictions": [...]}
    GET /ping, /health  status 200;   GET /version   the version of MLflow whose protocol this is

What can't be answered for gets status 400 and {"error_code", "message"}. MLflow's own server would cast the numbers to
uint8: a picture scaled to [0, 1] would become black without a word.
"""

import asyncio
import gc
import json
import os
import socket
from http import HTTPStatus
from importlib.metadata import version
from pathlib import Path

import numpy as np

from cifar_pipeline.console import Refusal, say
from cifar_pipeline.inference.limits import LimitedRequests, Message, Receive, Send, bytes_of_pictures
from cifar_pipeline.inference.predictor import Prediction, Predictor

WHITE = 255
KEYS = ("inputs", "instances")


class Unfit(Exception):
    """A request that can't be answered: with which status, and why."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


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


def answer(predictor: Predictor, name: str, listener: socket.socket, most_pictures: int) -> None:
    """Answer for a model until somebody stops this process.

    A request may be as large as `most_pictures` pictures are in JSON.
    """
    import uvicorn

    hint = (
        f"send at most {most_pictures} pictures at once, without indentation, or let "
        "`overrides: {serve: {most_pictures: ...}}` in params.yaml allow more."
    )
    most_bytes = bytes_of_pictures(most_pictures, predictor.facts.shape)
    limited = LimitedRequests(Application(predictor), most_bytes, hint=hint)
    # What was loaded is no garbage: the collector would go through it again and again while clients wait.
    gc.collect()
    gc.freeze()
    host, port = listener.getsockname()[:2]
    say(f"Answering for {name} on http://{host}:{port}/invocations ({predictor.session.device}); Ctrl-C ends it.")
    # Without the lifespan messages, which this application has no use for.
    options = uvicorn.Config(limited, log_level="warning", lifespan="off")
    uvicorn.Server(options).run(sockets=[listener])


class Application:
    """The server as an ASGI application (https://asgi.readthedocs.io), behind `LimitedRequests`."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        try:
            status, content, kind = await self._answer(scope, receive)
        except Unfit as error:
            said = {"error_code": "BAD_REQUEST", "message": str(error)}
            status, content, kind = error.status, json.dumps(said).encode(), b"application/json"
        headers = [(b"content-type", kind), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": int(status), "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _answer(self, scope: Message, receive: Receive) -> tuple[HTTPStatus, bytes, bytes]:
        path, method = scope["path"].rstrip("/"), scope["method"]
        if path in ("/ping", "/health") and method in ("GET", "HEAD"):
            return HTTPStatus.OK, b"\n", b"application/json"
        if path == "/version" and method in ("GET", "HEAD"):
            return HTTPStatus.OK, version("mlflow").encode(), b"application/json"
        if path != "/invocations":
            raise Unfit(f"There is no {path[:80]}: POST pictures to /invocations.", HTTPStatus.NOT_FOUND)
        if method != "POST":
            raise Unfit("Pictures are sent to /invocations by POST.", HTTPStatus.METHOD_NOT_ALLOWED)
        kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Unfit("Send JSON, with the header Content-Type: application/json.", HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
        message = await receive()
        # In a thread, so that other connections are read meanwhile.
        return HTTPStatus.OK, await asyncio.to_thread(self._predictions, message.get("body", b"")), b"application/json"

    def _predictions(self, body: bytes) -> bytes:
        pictures = raw_pictures(sent_numbers(body), self.predictor.facts.shape)
        try:
            rankings = self.predictor.ranking(pictures, len(self.predictor.facts.classes))
        except Refusal as refusal:
            raise Unfit(str(refusal), HTTPStatus.INTERNAL_SERVER_ERROR) from None
        return json.dumps({"predictions": [Prediction("", ranking).as_json() for ranking in rankings]}).encode()


def sent_numbers(body: bytes) -> np.ndarray:
    """The numbers of a request, an array of any shape.

    Raises:
        Unfit: it is no JSON object with one of `KEYS`, or what is in it are no numbers of one shape.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Unfit(f"The request is no valid JSON ({str(error)[:100]}).") from None
    given = [key for key in KEYS if key in content] if isinstance(content, dict) else []
    if len(given) != 1:
        raise Unfit('Send a JSON object {"inputs": [picture, ...]}, or "instances".')
    numbers = content[given[0]]
    if isinstance(numbers, dict) and len(numbers) == 1:  # the one input by its name
        (numbers,) = numbers.values()
    try:
        # Whole numbers stay whole: float64 has room for all of them that matter.
        return np.array(numbers, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise Unfit("What was sent are not lists of numbers of one length: a picture is [H][W][C] of them.") from None


def raw_pictures(numbers: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Numbers `[N, H, W, C]`, where `shape` is `(H, W, C)`, as raw pictures, uint8.

    Raises:
        Unfit: they are none, or scaled; the server answers with its sentence and status 400.
    """
    if numbers.ndim > 0 and not len(numbers):
        raise Unfit("There is no picture: send a list of at least one.")
    if numbers.shape[1:] != shape or numbers.ndim != 4:
        raise Unfit(f"Shape of input {numbers.shape} does not match expected shape {(-1, *shape)}.")
    whole = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers <= WHITE)
    brightest = numbers.reshape(len(numbers), -1).max(axis=1)
    if not whole.all() or (brightest == 1).any():
        raise Unfit(
            "A picture's pixels are whole numbers from 0 (black) to 255 (white), as they are stored; these are not, or "
            f"they are scaled to [0, 1] (the smallest is {numbers.min():g}, the largest {numbers.max():g}). The model "
            "normalises them itself: send them unscaled."
        )
    return numbers.astype(np.uint8)


def open_served(folder: Path, threads: int, accelerator: str) -> Predictor:
    """The model in `folder`, asked once, so that the first client does not wait for it."""
    predictor = Predictor.open(folder, threads, accelerator)
    predictor.probabilities(np.zeros((1, *predictor.facts.shape), np.uint8))
    return predictor
