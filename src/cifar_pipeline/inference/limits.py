"""Limit what one HTTP request may cost, in front of any ASGI application (https://asgi.readthedocs.io).

A body is received whole before the application sees it, within limits of size and time, and checked for the two shapes
of JSON that cost a parser far more than their size: deep nesting and endless numbers.
"""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from http import HTTPStatus
from math import prod
from typing import Any

import numpy as np

# Of `255.0, `, the longest way in which a picture's number is usually written, with its share of the brackets.
BYTES_PER_NUMBER = 8
# What surrounds the pictures.
ENVELOPE = 4096
DEEPEST = 32
TOO_LONG = re.compile(rb"[0-9]{40}")
PORTION = 1 << 20
# How many bodies of full size may be in memory at once, in all connections.
BODIES_AT_ONCE = 4
# Of a body that is refused: read and forgotten, because most clients send all before they read the answer.
DISCARDED = 256 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def bytes_of_pictures(pictures: int, shape: Sequence[int]) -> int:
    """Compute how many bytes a request with that number of pictures `[H, W, C]` may take in JSON."""
    return ENVELOPE + pictures * prod(shape) * BYTES_PER_NUMBER


class Refused(Exception):
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
        self, app: Application, most_bytes: int, seconds: float = 60, hint: str = "send less at once."
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
        except Refused as refused:
            self._release(body)
            await _answer(refused, scope, receive, send, self.seconds)
        except _Gone:
            pass
        finally:
            self._release(body)

    async def _checked(self, scope: Message, receive: Receive, body: bytearray) -> None:
        """Receive the request into `body`. Raises Refused where it is beyond a limit."""
        headers = _headers(scope)
        if headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers:
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                raise Refused(
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
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, said) from None
        # In a thread, so that other connections are read meanwhile.
        fault = await asyncio.to_thread(fault_of, body)
        if fault:
            raise Refused(HTTPStatus.BAD_REQUEST, fault)

    async def _receive(self, receive: Receive, body: bytearray) -> None:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise _Gone
            part = message.get("body", b"")
            if len(body) + len(part) > self.most_bytes:
                raise self._too_large()
            if self.held + len(part) > BODIES_AT_ONCE * self.most_bytes:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "Other requests are being answered: send it again later.")
            self.held += len(part)
            body += part
            if not message.get("more_body", False):
                return

    def _release(self, body: bytearray) -> None:
        self.held -= len(body)
        body.clear()

    def _too_large(self) -> Refused:
        said = f"The request has more than {self.most_bytes:,} bytes: {self.hint}"
        return Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, said)


class _Gone(Exception):
    """The client closed its connection before its request was complete."""


def fault_of(body: bytes | bytearray) -> str | None:
    """Find what would make a JSON body cost more than its size: None, or a sentence.

    Brackets within strings count too: no request needs them.
    """
    depth = 0
    for start in range(0, len(body), PORTION):
        portion = np.frombuffer(body, np.uint8, min(PORTION, len(body) - start), start)
        steps = np.zeros(len(portion), np.int32)
        steps[(portion == ord("[")) | (portion == ord("{"))] = 1
        steps[(portion == ord("]")) | (portion == ord("}"))] = -1
        depths = depth + np.cumsum(steps, dtype=np.int64)
        if depths.max() > DEEPEST:
            return f"The request is nested deeper than {DEEPEST} lists: a picture is [H][W][C] of numbers."
        depth = int(depths[-1])
    if TOO_LONG.search(body):
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


async def _answer(refused: Refused, scope: Message, receive: Receive, send: Send, seconds: float) -> None:
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
            while size < DISCARDED:
                message = await receive()
                size += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        pass
