"""Redact passwords, tokens and keys in text that leaves the process: messages, tags, files.

A secret is recognised by its place (the password of a URL, a query parameter such as `token` or `X-Amz-Signature`), or
by its value, where an environment variable such as MLFLOW_TRACKING_PASSWORD holds it.

Escape the characters of a text that would act on a terminal or a page, or cannot be written: `\x1b`, `\udcff`.

File names, class names and messages come from outside. A control character moves the cursor or starts an escape
sequence, a bidirectional override shows text in another order, a lone surrogate (a byte of a file name that is no
UTF-8) cannot be encoded.

Nested values under one name each: the way down to them.
"""

import logging
import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

# C0 and DEL, C1; marks, embeddings, overrides and isolates of direction; separators of lines; surrogates; tags.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
    r"\U000e0000-\U000e007f]"
)


def escape_control(text: str, keep: str = "") -> str:
    r"""Return the text with its unsafe characters escaped as Python writes them, except those in `keep`."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def escape_control_json(text: str) -> str:
    r"""Escape the same characters in JSON as `\u001b`, so that it can be printed and reads back as it was."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped_json(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _escaped_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))


MASK = "***"
# Shorter values are found in ordinary words.
MIN_SECRET_LENGTH = 6
# What the names of secret query parameters, keys and environment variables end with, or hold as a whole word.
_NAME = (
    r"(?:[\w.%+-]*[_.-])?(?:pass(?:word|wd|phrase)?|pwd|secret|token|sig|signature|credential|jwt|sas|"
    r"(?:api|access|account|secret|private|shared|auth)?[_-]?key|access[_-]?key[_-]?id|auth|authorization|code)"
)
_SECRET_VARIABLE = re.compile(
    r"(?:.*_)?(?:PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|API_?KEY|ACCESS_KEY|SECRET_KEY|ACCOUNT_KEY|CONNECTION_STRING)",
    re.IGNORECASE,
)
# The user may be there without a password, and a token is often the user. SQLAlchemy takes passwords with `/` and `@`.
_USERINFO = re.compile(
    r"(?<=://)(?P<user>[^\s:/?#@\"'<>]*)(?P<password>:(?!\d{1,5}[/?#])(?:(?!://)[^\s\"'<>])*)?@(?=[^\s@]*)"
)
_QUERY = re.compile(rf"(?P<name>[?&;](?:{_NAME})=)(?P<value>[^\s&#;\"'<>\])}},]+)", re.IGNORECASE)
# Of a configuration's keys only what can be nothing else: `key` and `code` may be ordinary ones there.
_SECRET_KEY = re.compile(r"(?:\w*_)?(?:password|passwd|secret|token|api_?key|access_key)", re.IGNORECASE)
_ASSIGNMENT = re.compile(r"(?P<name>[~+]*[\w./@-]+=)(?P<value>.+)", re.DOTALL)


def redact(text: str) -> str:
    """Replace the secrets in a text by `***`: those of every URL in it, and the values of secret environment variables.

    Of a URL the user's name stays, unless it has no password: then it may itself be a token.
    """
    if "://" in text:
        text = _USERINFO.sub(lambda found: f"{found['user'] if found['password'] else MASK}:{MASK}@", text)
        text = text.replace(f"{MASK}:{MASK}@", f"{MASK}@")
    if "=" in text:
        text = _QUERY.sub(lambda found: found["name"] + MASK, text)
    for secret in sorted(set(_known_secrets()), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def redact_bytes(content: bytes) -> bytes:
    """Redact a text in any encoding that holds ASCII; its other bytes stay."""
    return redact(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def redact_values(value: Any, name: str = "") -> Any:
    """Redact every text in nested mappings and lists; under a key such as `password` the whole text."""
    if isinstance(value, Mapping):
        return {key: redact_values(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_values(item, name) for item in value)
    if not isinstance(value, str):
        return value
    return MASK if value and _is_secret_key(name) else redact(value)


def redact_arguments(words: Iterable[str]) -> list[str]:
    """Redact the words of a command line, `key=value` by its key as well."""

    def word(text: str) -> str:
        found = _ASSIGNMENT.fullmatch(text)
        if found and _is_secret_key(found["name"].rstrip("=").rpartition(".")[2].lstrip("+-")):
            return found["name"] + MASK
        return redact(text)

    return [word(text) for text in words]


def contains_secret(text: str) -> bool:
    """Return whether a word of a command line holds a secret."""
    return redact_arguments([text]) != [text]


def _is_secret_key(name: str) -> bool:
    return _SECRET_KEY.fullmatch(name) is not None


def _known_secrets() -> Iterator[str]:
    """Yield the secrets that this process's environment holds."""
    # One by one, because MLflow's thread removes a variable of its own meanwhile.
    for name in list(os.environ):
        value = os.environ.get(name, "")
        if _SECRET_VARIABLE.fullmatch(name) and len(value) >= MIN_SECRET_LENGTH:
            yield value
        elif "://" in value:
            for found in _USERINFO.finditer(value):
                password = (found["password"] or "").removeprefix(":")
                yield from {text for text in (password, unquote(password)) if len(text) >= MIN_SECRET_LENGTH}
            yield from (found["value"] for found in _QUERY.finditer(value) if len(found["value"]) >= MIN_SECRET_LENGTH)


def redact_and_escape(text: str) -> str:
    """Redact a text and escape what would act on a terminal, but for the ends of its lines and its tabs."""
    return escape_control(redact(text), keep="\n\t")


class _RedactedRecord(logging.LogRecord):
    """A line of a library's log."""

    def getMessage(self) -> str:  # noqa: N802
        return redact_and_escape(super().getMessage())


def redact_logging() -> None:
    """Redact and escape what others print: the tracebacks of errors that nobody caught, and the lines of logs."""
    sys.excepthook = lambda kind, error, place: print_traceback(error)
    logging.setLogRecordFactory(_RedactedRecord)


def print_traceback(error: BaseException) -> None:
    """Print an error with its traceback, on standard error."""
    print(redact_and_escape("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def one_line(text: object) -> str:
    """Join the lines of a text, or of an error's message, with single spaces between words."""
    return " ".join(str(text).split())


def percent(fraction: float, digits: int = 2, space: str = " ") -> str:
    """Format a fraction as a percentage: `93.21 %`."""
    return f"{100 * fraction:.{digits}f}{space}%"


def flatten_dict(values: Mapping[str, Any], separator: str = ".") -> dict[str, Any]:
    """Flatten nested mappings; keys are joined as on a command line: `optimizer.lr`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}{separator}{name}": leaf for name, leaf in flatten_dict(value, separator).items()}
        else:
            flat[str(key)] = value
    return flat
