"""Serve a model over HTTP in the protocol of MLflow's scoring server, without MLflow, and limit the cost of requests.

    POST /invocations   {"inputs": images [N, H, W, C]}, or "instances"; the response is {"predictions": [...]}
    GET /ping, /health  status 200;   GET /version   the version of MLflow with this protocol

Invalid input gets status 400 and {"error_code", "message"}. MLflow's server would cast numbers to uint8, which silently
turns images scaled to [0, 1] black.

`LimitedRequests` works in front of any ASGI application (https://asgi.readthedocs.io). It receives a body completely
within limits of size and time, and checks it for JSON that costs a parser far more than its size: deep nesting and long
numbers.
"""

import asyncio
import gc
import json
import logging
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
from cifar_pipeline.utils.errors import UserError

log = logging.getLogger(__name__)

# Bytes of a pixel value in JSON: at most `255.0, ` and its share of the brackets.
BYTES_PER_NUMBER = 8
# Bytes of JSON around the images.
ENVELOPE_BYTES = 4096
MAX_DEPTH = 32
LONG_NUMBER = re.compile(rb"[0-9]{40}")
READ_SIZE = 1 << 20
# Number of bodies of full size in memory at once, over all connections.
MAX_CONCURRENT_BODIES = 4
# Of a rejected body: read and discarded, because most clients send the whole body before they read the response.
MAX_DISCARDED_BYTES = 256 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApplication = Callable[[Message, Receive, Send], Awaitable[None]]


def max_body_bytes(images: int, shape: Sequence[int]) -> int:
    """Return the maximum size of a JSON request with this number of images of `shape` `[H, W, C]`."""
    return ENVELOPE_BYTES + images * prod(shape) * BYTES_PER_NUMBER


class RejectedRequest(Exception):
    """A request that is not passed to the application; its text is the response's message."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class LimitedRequests:
    """An ASGI application in front of `app` that rejects requests beyond the limits.

    413: the body has more than `max_bytes` bytes, by its Content-Length or as received. 408: it took longer than
    `seconds`. 503: other bodies use the available memory. 415: it is not JSON. 400: it is nested deeper than
    `MAX_DEPTH`, or has a number of 40 digits. The response is `{"error_code": ..., "message": ...}`, as
    from MLflow's server. `hint` is appended to the message of a 413.
    """

    def __init__(
        self, app: AsgiApplication, max_bytes: int, seconds: float = 60, hint: str = "Send less at once."
    ) -> None:
        self.app, self.max_bytes, self.seconds, self.hint = app, max_bytes, seconds, hint
        self.buffered_bytes = 0

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass one request to the application, or reject it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = bytearray()
        try:
            await self._receive_checked(scope, receive, body)
            # Bytes, as the ASGI specification requires.
            await self.app(scope, _replay(bytes(body), receive), send)
        except RejectedRequest as rejection:
            self._release(body)
            await _respond(rejection, scope, receive, send, self.seconds)
        except _Disconnected:
            pass
        finally:
            self._release(body)

    async def _receive_checked(self, scope: Message, receive: Receive, body: bytearray) -> None:
        """Receive the request into `body`. Raises `RejectedRequest` if it exceeds a limit."""
        headers = _headers(scope)
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            content_type = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if content_type != b"application/json":
                raise RejectedRequest(
                    HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "Send JSON, with the header Content-Type: application/json."
                )
        content_length = headers.get(b"content-length", b"")
        if content_length.isdigit() and (len(content_length) > 18 or int(content_length) > self.max_bytes):
            raise self._too_large()
        try:
            async with asyncio.timeout(self.seconds):
                await self._receive(receive, body)
        except TimeoutError:
            message = f"The request was not complete after {self.seconds:g} seconds."
            raise RejectedRequest(HTTPStatus.REQUEST_TIMEOUT, message) from None
        # In a thread, so that other connections are not blocked.
        error = await asyncio.to_thread(http_error, body)
        if error:
            raise RejectedRequest(HTTPStatus.BAD_REQUEST, error)

    async def _receive(self, receive: Receive, body: bytearray) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Disconnected
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > self.max_bytes:
                raise self._too_large()
            if self.buffered_bytes + len(chunk) > MAX_CONCURRENT_BODIES * self.max_bytes:
                raise RejectedRequest(
                    HTTPStatus.SERVICE_UNAVAILABLE,
                    "The server is busy with other requests. Send the request again later.",
                )
            self.buffered_bytes += len(chunk)
            body += chunk
            if not message.get("more_body", False):
                return

    def _release(self, body: bytearray) -> None:
        self.buffered_bytes -= len(body)
        body.clear()

    def _too_large(self) -> RejectedRequest:
        message = f"The request has more than {self.max_bytes:,} bytes. {self.hint}"
        return RejectedRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, message)


class _Disconnected(Exception):
    """The client closed its connection before its request was complete."""


def http_error(body: bytes | bytearray) -> str | None:
    """Return a message if parsing a JSON body would cost far more than its size, else None.

    Brackets in strings count as well; valid requests have none.
    """
    depth = 0
    for start in range(0, len(body), READ_SIZE):
        window = np.frombuffer(body, np.uint8, min(READ_SIZE, len(body) - start), start)
        steps = np.zeros(len(window), np.int32)
        steps[(window == ord("[")) | (window == ord("{"))] = 1
        steps[(window == ord("]")) | (window == ord("}"))] = -1
        depths = depth + np.cumsum(steps, dtype=np.int64)
        if depths.max() > MAX_DEPTH:
            return f"The request is nested deeper than {MAX_DEPTH} lists; an image is a list [H][W][C] of numbers."
        depth = int(depths[-1])
    if LONG_NUMBER.search(body):
        return "The request has a number of more than 40 digits; pixels are integers from 0 to 255."
    return None


def _headers(scope: Message) -> dict[bytes, bytes]:
    return {key.lower(): value for key, value in scope["headers"]}


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that yields the whole body first, then further messages of the client."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return messages.pop() if messages else await receive()

    return next_message


async def _respond(rejection: RejectedRequest, scope: Message, receive: Receive, send: Send, seconds: float) -> None:
    code = "BAD_REQUEST" if rejection.status < 500 else "TEMPORARILY_UNAVAILABLE"
    content = json.dumps({"error_code": code, "message": str(rejection)}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": int(rejection.status), "headers": headers})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    # A client that expects 100-continue has sent nothing yet.
    if rejection.status != HTTPStatus.REQUEST_TIMEOUT and b"expect" not in _headers(scope):
        await _discard(receive, seconds)
    await send({"type": "http.response.body", "body": b""})


async def _discard(receive: Receive, seconds: float) -> None:
    """Read the rest of a body: if the connection were closed first, the client would see a reset, not the response."""
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
    """An invalid request, with the status and the message of the response."""

    def __init__(self, message: str, status: HTTPStatus = HTTPStatus.BAD_REQUEST) -> None:
        super().__init__(message)
        self.status = status


def bind(host: str, port: int) -> socket.socket:
    """Listen on the port, so that early requests wait. Raises `UserError` if that is not possible."""
    try:
        listener = socket.create_server((host, port))
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise UserError(
            f"Cannot listen on {host}:{port} ({reason}). Choose another port with "
            "`overrides: {serve: {port: 5002}}` in params.yaml."
        ) from None
    # Inherited by each connection: without it, each response over a kept connection is delayed by 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def serve(predictor: Predictor, name: str, listener: socket.socket, max_images: int) -> None:
    """Serve a model until the process is stopped.

    The size of a request is limited to that of `max_images` images in JSON.
    """
    import uvicorn

    hint = (
        f"Send at most {max_images} images at once, without indentation, or raise the limit with "
        "`overrides: {serve: {max_images: ...}}` in params.yaml."
    )
    max_bytes = max_body_bytes(max_images, predictor.metadata.shape)
    limited = LimitedRequests(Application(predictor), max_bytes, hint=hint)
    # Loaded modules stay: without the freeze, the garbage collector would traverse them while clients wait.
    gc.collect()
    gc.freeze()
    host, port = listener.getsockname()[:2]
    log.info(f"Serving {name} on http://{host}:{port}/invocations ({predictor.session.device}). Stop with Ctrl-C.")
    # Without lifespan messages, which this application does not use.
    options = uvicorn.Config(limited, log_level="warning", lifespan="off")
    uvicorn.Server(options).run(sockets=[listener])


class Application:
    """Respond to requests in MLflow's protocol, as an ASGI application behind `LimitedRequests`."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor = predictor

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Respond to one request."""
        if scope["type"] != "http":
            return
        try:
            status, content = await self._response(scope, receive)
        except InvalidInput as error:
            problem = {"error_code": "BAD_REQUEST", "message": str(error)}
            status, content = error.status, json.dumps(problem).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
        await send({"type": "http.response.start", "status": int(status), "headers": headers})
        await send({"type": "http.response.body", "body": content})

    async def _response(self, scope: Message, receive: Receive) -> tuple[HTTPStatus, bytes]:
        path, method = scope["path"].rstrip("/"), scope["method"]
        if path in ("/ping", "/health") and method in ("GET", "HEAD"):
            return HTTPStatus.OK, b"\n"
        if path == "/version" and method in ("GET", "HEAD"):
            return HTTPStatus.OK, version("mlflow").encode()
        if path != "/invocations":
            raise InvalidInput(f"There is no {path[:80]}. POST images to /invocations.", HTTPStatus.NOT_FOUND)
        if method != "POST":
            raise InvalidInput("Send images to /invocations by POST.", HTTPStatus.METHOD_NOT_ALLOWED)
        content_type = dict(scope["headers"]).get(b"content-type", b"").partition(b";")[0].strip().lower()
        if content_type != b"application/json":
            raise InvalidInput(
                "Send JSON, with the header Content-Type: application/json.", HTTPStatus.UNSUPPORTED_MEDIA_TYPE
            )
        message = await receive()
        # In a thread, so that other connections are not blocked.
        return HTTPStatus.OK, await asyncio.to_thread(self._predictions, message.get("body", b""))

    def _predictions(self, body: bytes) -> bytes:
        images = to_uint8_images(parse_inputs(body), self.predictor.metadata.shape)
        try:
            rankings = self.predictor.top_k(images, len(self.predictor.metadata.classes))
        except UserError as error:
            raise InvalidInput(str(error), HTTPStatus.INTERNAL_SERVER_ERROR) from None
        return json.dumps({"predictions": [Prediction("", ranking).as_json() for ranking in rankings]}).encode()


def parse_inputs(body: bytes) -> np.ndarray:
    """Parse the numbers of a request into a float64 array of any shape.

    Raises:
        InvalidInput: it is not a JSON object with one of `INPUT_KEYS`, or the lists are not numbers of one shape.
    """
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"The request is not valid JSON ({str(error)[:100]}).") from None
    keys = [key for key in INPUT_KEYS if key in content] if isinstance(content, dict) else []
    if len(keys) != 1:
        raise InvalidInput('Send a JSON object {"inputs": [image, ...]}, or "instances".')
    numbers = content[keys[0]]
    if isinstance(numbers, dict) and len(numbers) == 1:  # the input by its name
        (numbers,) = numbers.values()
    try:
        # float64 represents all pixel values exactly.
        return np.array(numbers, dtype=np.float64)
    except (ValueError, TypeError, OverflowError):
        raise InvalidInput(
            "The images are not nested lists of numbers of equal lengths; an image is a list [H][W][C] of numbers."
        ) from None


def to_uint8_images(numbers: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Convert numbers `[N, H, W, C]`, where `shape` is `(H, W, C)`, to uint8 without scaling.

    Raises:
        InvalidInput: they have another shape, are not integers from 0 to 255, or seem to be scaled to [0, 1].
    """
    if numbers.ndim > 0 and not len(numbers):
        raise InvalidInput("There is no image. Send a list of at least one.")
    if numbers.shape[1:] != shape or numbers.ndim != 4:
        raise InvalidInput(f"Shape of input {numbers.shape} does not match expected shape {(-1, *shape)}.")
    is_pixel = (numbers == np.floor(numbers)) & (numbers >= 0) & (numbers <= WHITE)
    image_max = numbers.reshape(len(numbers), -1).max(axis=1)
    if not is_pixel.all() or (image_max == 1).any():
        raise InvalidInput(
            "Pixels must be integers from 0 (black) to 255 (white); these are not, or they are scaled to [0, 1] "
            f"(minimum {numbers.min():g}, maximum {numbers.max():g}). Send them unscaled: the model normalizes them."
        )
    return numbers.astype(np.uint8)


def open_predictor(folder: Path, threads: int, accelerator: str) -> Predictor:
    """Open the model in `folder` and run it once, so that the first request is not slower."""
    predictor = Predictor.open(folder, threads, accelerator)
    predictor.probabilities(np.zeros((1, *predictor.metadata.shape), np.uint8))
    return predictor
