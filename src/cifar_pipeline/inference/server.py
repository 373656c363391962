"""Answer for images over HTTP, in the protocol of MLflow's scoring server, without MLflow.

    POST /invocations   {"inputs": images [N, H, W, C]}, or "instances"; the answer is {"predictions": [...]}
    GET /ping, /health  status 200;   GET /version   the version of MLflow whose protocol this is

What can't be answered for gets status 400 and {"error_code", "message"}. MLflow's own server would cast the numbers to
uint8: an image scaled to [0, 1] would become black without a word.

Limit what one HTTP request may cost, in front of any ASGI application (https://asgi.readthedocs.io).

A body is received whole before the application sees it, within limits of size and time, and checked for the two shapes
of JSON that cost a parser far more than their size: deep nesting and endless numbers.
"""

import asyncio
import gc
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from cifar_pipeline.inference.predictor import Prediction, Predictor
from cifar_pipeline.utils.console import info
from cifar_pipeline.utils.errors import UserError

# Of `255.0, `, the longest way in which an image's number is usually written, with its share of the brackets.
BYTES_PER_NUMBER = 8
# What surrounds the images.
ENVELOPE = 4096
MAX_DEPTH = 32
BODY_TOO_LARGE = re.compile(rb"[0-9]{40}")
READ_SIZE = 1 << 20
# How many bodies of full size may be in memory at once, in all connections.
MAX_CONCURRENT_BODIES = 4
# Of a body that is refused: read and forgotten, because most clients send all before they read the answer.
MAX_DISCARDED_BYTES = 256 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApplication = Callable[[Message, Receive, Send], Awaitable[None]]


def max_body_bytes(images: int, shape: Sequence[int]) -> int:
    """Compute how many bytes a request with that number of images `[H, W, C]` may take in JSON."""
    return ENVELOPE + images * prod(shape) * BYTES_PER_NUMBER


class RejectedRequest(Exception):
    """A request that does not reach the application; its text is the answer's message."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class LimitedRequests:
    """An ASGI application in front of `app` that answers for requests beyond the limits.

    413: the body has more than `most_bytes` bytes, by its Content-Length or as it is received. 408: it took longer than
    `seconds`. 503: other bodies fill the memory that is set aside. 415: it is no JSON. 400: it is nested deeper than
    `DEEPEST`, or has a number of 40 digits. The answer is `{"error_code": ..., "message": ...}`, as MLflow's server
    writes it. `hint` is appended to the message of a 413: what to do about it.
    """

    def __init__(
        self, app: AsgiApplication, most_bytes: int, seconds: float = 60, hint: str = "send less at once."
    ) -> None:
        self.app, self.most_bytes, self.seconds, self.hint = app, most_bytes, seconds, hint
        self.held = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request, or have it answered."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        try:
            await self._checked(scope, receive, body)
            # Bytes, because that is what the specification promises to applications.
            await self.app(scope, _received(bytes(body), receive), send)
        except RejectedRequest as refused:
            self._release(body)
            await _answer(refused, scope, receive, send, self.seconds)
        except _Disconnected:
            pass
        finally:
            self._release(body)

    async def _checked(self, scope: Message, receive: Receive, body: bytearray) -> None:
        """Receive the request into `body`. Raises Refused where it is beyond a limit."""
        headers = _headers(scope)
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                raise RejectedRequest(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with the header Content-Type: application/json."
                )
        announced = headers.get(b"content-length", b"")
        if announced.isdigit() and (len(announced) > 18 or int(announced) > self.most_bytes):
            raise self._too_large()
        try:
            async with asyncio.timeout(self.seconds):
                await self._receive(receive, body)
        except TimeoutError:
            said = f"The request was not complete after {self.seconds:g} seconds."
            raise RejectedRequest(HTTPStatus.REQUEST_TIMEOUT, said) from None
        # In a thread, so that other connections are read meanwhile.
        fault = await asyncio.to_thread(http_error, body)
        if fault:
            raise RejectedRequest(HTTPStatus.BAD_REQUEST, fault)

    async def _receive(self, receive: Receive, body: bytearray) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            part = message.get("body", b"")
            if len(body) + len(part) > self.most_bytes:
                raise self._too_large()
            if self.held + len(part) > MAX_CONCURRENT_BODIES * self.most_bytes:
                raise RejectedRequest(
                    HTTPStatus.SERVICE_UNAVAILABLE, "Other requests are being answered: send it again later."
                )
            self.held += len(part)
            body += part
            if not message.get("more_body", False):
                return

    def _release(self, body: bytearray) -> None:
        self.held -= len(body)
        body.clear()

    def _too_large(self) -> RejectedRequest:
        said = f"The request has more than {self.most_bytes:,} bytes: {self.hint}"
        return RejectedRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, said)


class _Disconnected(Exception):
    """The client closed its connection before its request was complete."""


def http_error(body: bytes | bytearray) -> str | None:
    """Find what would make a JSON body cost more than its size: None, or a sentence.

    Brackets within strings count too: no request needs them.
    """
    depth = 0
    for start in range(0, len(body), READ_SIZE):
        portion = np.frombuffer(body, np.uint8, min(READ_SIZE, len(body) - start), start)
        steps = np.zeros(len(portion), np.int32)
        steps[(portion == ord("[")) | (portion == ord("{"))] = 1
        steps[(portion == ord("]")) | (portion == ord("}"))] = -1
        depths = depth + np.cumsum(steps, dtype=np.int64)
        if depths.max() > MAX_DEPTH:
            return f"The request is nested deeper than {MAX_DEPTH} lists: an image is [H][W][C] of numbers."
        depth = int(depths[-1])
    if BODY_TOO_LARGE.search(body):
        return "The request has a number of more than 40 digits: a pixel is a whole number from 0 to 255."
    return None


def _headers(scope: Message) -> dict[bytes, bytes]:
    return {key.lower(): value for key, value in scope["headers"]}


def _received(body: bytes, receive: Receive) -> Receive:
    """Hand the whole body to the application; what follows comes from the client."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def following() -> Message:
        return messages.pop() if messages else await receive()

    return following


async def _answer(refused: RejectedRequest, scope: Message, receive: Receive, send: Send, seconds: float) -> None:
    code = "BAD_REQUEST" if refused.status < 500 else "TEMPORARILY_UNAVAILABLE"
    content = json.dumps({"error_code": code, "message": str(refused)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": int(refused.status), "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    # A client that expects 100-continue has sent nothing yet.
    if refused.status != HTTPStatus.REQUEST_TIMEOUT and b"expect" not in _headers(scope):
        await _discard(receive, seconds)
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive, seconds: float) -> None:
    """Read the rest of a body: where a connection is closed before, the client sees a reset and not the answer."""
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while size < MAX_DISCARDED_BYTES:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        pass


WHITE = 255
INPUT_KEYS = ("inputs", "instances")


class InvalidInput(Exception):
    """A request that can't be answered: with which status, and why."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


def bind(host: str, port: int) -> socket.socket:
    """Take hold of the port, so that requests wait for the answers. Raises `Refusal` where that is impossible."""
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        remedy = "`overrides: {serve: {port: 5002}}` in params.yaml names another port"
        raise UserError(f"{host}:{port} can't be listened on ({reason}): {remedy}.") from None
    # Inherited by each connection: without it, a client that keeps its connection waits 40 ms for each answer.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(predictor: Predictor, name: str, listener: socket.socket, max_images: int) -> None:
    """Answer for a model until somebody stops this process.

    A request may be as large as `max_images` images are in JSON.
    """
    import uvicorn

    hint = (
        f"send at most {max_images} images at once, without indentation, or let "
        "`overrides: {serve: {max_images: ...}}` in params.yaml allow more."
    )
    most_bytes = max_body_bytes(max_images, predictor.metadata.shape)
    limited = LimitedRequests(Application(predictor), most_bytes, hint=hint)
    # What was loaded is no garbage: the collector would go through it again and again while clients wait.
    gc.collect()
    gc.freeze()
    host, port = listener.getsockname()[:2]
    info(f"Answering for {name} on http://{host}:{port}/invocations ({predictor.session.device}); Ctrl-C ends it.")
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
        except InvalidInput as error:
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
            raise InvalidInput(f"There is no {path[:80]}: POST images to /invocations.", HTTPStatus.NOT_FOUND)
        if method != "POST":
            raise InvalidInput("Images are sent to /invocations by POST.", HTTPStatus.METHOD_NOT_ALLOWED)
        kind = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise InvalidInput(
                "Send JSON, with the header Content-Type: application/json.", HTTPStatus.UNSUPPORTED_MEDIA_TYPE
            )
        message = await receive()
        # In a thread, so that other connections are read meanwhile.
        return HTTPStatus.OK, await asyncio.to_thread(self._predictions, message.get("body", b"")), b"application/json"

    def _predictions(self, body: bytes) -> bytes:
        images = to_uint8_images(parse_inputs(body), self.predictor.metadata.shape)
        try:
            rankings = self.predictor.ranking(images, len(self.predictor.metadata.classes))
        except UserError as refusal:
            raise InvalidInput(str(refusal), HTTPStatus.INTERNAL_SERVER_ERROR) from None
        return json.dumps({"predictions": [Prediction("", ranking).as_json() for ranking in rankings]}).encode()


def parse_inputs(body: bytes) -> np.ndarray:
    """The numbers of a request, an array of any shape.

    Raises:
        Unfit: it is no JSON object with one of `KEYS`, or what is in it are no numbers of one shape.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The request is no valid JSON ({str(error)[:100]}).") from None
    given = [key for key in INPUT_KEYS if key in content] if isinstance(content, dict) else []
    if len(given) != 1:
        raise InvalidInput('Send a JSON object {"inputs": [image, ...]}, or "instances".')
    numbers = content[given[0]]
    if isinstance(numbers, dict) and len(numbers) == 1:  # the one input by its name
        (numbers,) = numbers.values()
    try:
        # Whole numbers stay whole: float64 has package for all of them that matter.
        return np.array(numbers, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise InvalidInput(
            "What was sent are not lists of numbers of one length: an image is [H][W][C] of them."
        ) from None


def to_uint8_images(numbers: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Numbers `[N, H, W, C]`, where `shape` is `(H, W, C)`, as raw images, uint8.

    Raises:
        Unfit: they are none, or scaled; the server answers with its sentence and status 400.
    """
    if numbers.ndim > 0 and not len(numbers):
        raise InvalidInput("There is no image: send a list of at least one.")
    if numbers.shape[1:] != shape or numbers.ndim != 4:
        raise InvalidInput(f"Shape of input {numbers.shape} does not match expected shape {(-1, *shape)}.")
    whole = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers <= WHITE)
    brightest = numbers.reshape(len(numbers), -1).max(axis=1)
    if not whole.all() or (brightest == 1).any():
        raise InvalidInput(
            "An image's pixels are whole numbers from 0 (black) to 255 (white), as they are stored; these are not, or "
            f"they are scaled to [0, 1] (the smallest is {numbers.min():g}, the largest {numbers.max():g}). The model "
            "normalises them itself: send them unscaled."
        )
    return numbers.astype(np.uint8)


def open_predictor(folder: Path, threads: int, accelerator: str) -> Predictor:
    """The model in `folder`, asked once, so that the first client does not wait for it."""
    predictor = Predictor.open(folder, threads, accelerator)
    predictor.probabilities(np.zeros((1, *predictor.metadata.shape), np.uint8))
    return predictor
