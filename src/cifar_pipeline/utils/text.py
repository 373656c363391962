"""Redact secrets, escape control characters, and format text and the values that a JSON schema allows.

Redaction covers all text that leaves the process: messages, tags, files. A secret is recognized by its position (the
password of a URL, a query parameter such as `token` or `X-Amz-Signature`), or by its value, where an environment
variable such as MLFLOW_TRACKING_PASSWORD, or any variable of the file .env, contains it.

Escaping covers file names, class names and messages that come from outside. A control character moves the cursor or
starts an escape sequence, a bidirectional override changes the order of the text shown, and a lone surrogate (a byte of
a file name that is not UTF-8) cannot be encoded.
"""

import os
import re
import sys
import traceback
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

# C0 and DEL, C1; directional marks, embeddings, overrides and isolates; line separators; surrogates; tags.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
    r"\U000e0000-\U000e007f]"
)


def escape_control(text: str, keep: str = "") -> str:
    r"""Escape unsafe characters as in a Python literal (`\x1b`, `\udcff`), except those in `keep`."""
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else _escaped(match[0]), text)


def escape_control_json(text: str) -> str:
    r"""Escape the same characters in a JSON document as `\u001b`, which keeps its value."""
    return _UNSAFE.sub(lambda match: match[0] if match[0] in "\n\t" else _escaped_json(match[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _escaped_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[index]:02x}{units[index + 1]:02x}" for index in range(0, len(units), 2))


MASK = "***"
# Shorter values occur in ordinary words.
MIN_SECRET_LENGTH = 6
# Suffixes and whole words in the names of secret query parameters, keys and environment variables.
_NAME = (
    r"(?:[\w.%+-]*[_.-])?(?:pass(?:word|wd|phrase)?|pwd|secret|token|sig|signature|credential|jwt|sas|"
    r"(?:api|access|account|secret|private|shared|auth)?[_-]?key|access[_-]?key[_-]?id|auth|authorization|code)"
)
_SECRET_VARIABLE = re.compile(
    r"(?:.*_)?(?:PASSWORD|PASSWD|PASSPHRASE|TOKEN|SECRET|API_?KEY|ACCESS_KEY|SECRET_KEY|ACCOUNT_KEY|CONNECTION_STRING)",
    re.IGNORECASE,
)
# The password may be missing, and a token is often the user. SQLAlchemy accepts passwords with `/` and `@`.
_USERINFO = re.compile(
    r"(?<=://)(?P<user>[^\s:/?#@\"'<>]*)(?P<password>:(?!\d{1,5}[/?#])(?:(?!://)[^\s\"'<>])*)?@(?=[^\s@]*)"
)
_QUERY = re.compile(rf"(?P<name>[?&;](?:{_NAME})=)(?P<value>[^\s&#;\"'<>\])}},]+)", re.IGNORECASE)
# Stricter for keys of a configuration, where `key` and `code` may be ordinary names.
_SECRET_KEY = re.compile(r"(?:\w*_)?(?:password|passwd|secret|token|api_?key|access_key)", re.IGNORECASE)
# User names are no secrets, in URLs neither.
_USER_NAME = re.compile(r"(?:.*_)?USER(?:_?NAME)?", re.IGNORECASE)
# The variables in .env, with their values.
_declared: dict[str, str] = {}
_ASSIGNMENT = re.compile(r"(?P<name>[~+]*[\w./@-]+=)(?P<value>.+)", re.DOTALL)


def add_secrets(variables: Mapping[str, str]) -> None:
    """Declare environment variables whose values are secrets, whatever their names are, except user names."""
    _declared.update({name: value for name, value in variables.items() if not _USER_NAME.fullmatch(name)})


def declared_in(text: str) -> list[str]:
    """Return the names of the declared variables whose values a text contains."""
    return [name for name, value in _declared.items() if any(form in text for form in _forms(value))]


def redact(text: str) -> str:
    """Replace the secrets in a text by `***`: those in URLs, and the values of secret environment variables.

    A URL's user name is kept, unless there is no password: then it may be a token itself.
    """
    if "://" in text:
        text = _USERINFO.sub(lambda match: f"{match['user'] if match['password'] else MASK}:{MASK}@", text)
        text = text.replace(f"{MASK}:{MASK}@", f"{MASK}@")
    if "=" in text:
        text = _QUERY.sub(lambda match: match["name"] + MASK, text)
    for secret in sorted(set(_known_secrets()), key=len, reverse=True):
        text = text.replace(secret, MASK)
    return text


def server_url(uri: str) -> str:
    """Return the URL of an MLflow server without credentials; empty for the URI of a database or another store."""
    url = urlsplit(uri)
    is_server = url.scheme in ("http", "https")
    return urlunsplit(url._replace(netloc=url.netloc.rpartition("@")[2])) if is_server else ""


def redact_bytes(content: bytes) -> bytes:
    """Redact a text in any ASCII-compatible encoding; other bytes are kept."""
    return redact(content.decode("utf-8", "surrogateescape")).encode("utf-8", "surrogateescape")


def redact_values(value: Any, name: str = "") -> Any:
    """Redact every string in nested mappings and lists; under a key such as `password`, the entire string."""
    if isinstance(value, Mapping):
        return {key: redact_values(item, str(key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_values(item, name) for item in value)
    if not isinstance(value, str):
        return value
    return MASK if value and _is_secret_key(name) else redact(value)


def redact_arguments(arguments: Iterable[str]) -> list[str]:
    """Redact the arguments of a command line, `key=value` also by its key."""

    def redacted(argument: str) -> str:
        match = _ASSIGNMENT.fullmatch(argument)
        if match and _is_secret_key(match["name"].rstrip("=").rpartition(".")[2].lstrip("+-")):
            return match["name"] + MASK
        return redact(argument)

    return [redacted(argument) for argument in arguments]


def contains_secret(text: str) -> bool:
    """Return whether an argument of a command line contains a secret."""
    return redact_arguments([text]) != [text]


def _is_secret_key(name: str) -> bool:
    return _SECRET_KEY.fullmatch(name) is not None


def _known_secrets() -> Iterator[str]:
    """Yield the secrets in this process's environment variables, and those declared."""
    for value in _declared.values():
        yield from _forms(value)
    # Not `items()`, because a thread of MLflow removes a variable in the meantime.
    for name in list(os.environ):
        value = os.environ.get(name, "")
        if name in _declared or _SECRET_VARIABLE.fullmatch(name):
            yield from _forms(value)
        elif "://" in value:
            yield from _parts(value)


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret, each of its lines, and the secrets in it if it is a URL, except those that are too short."""
    yield from (text for text in {secret, *map(str.strip, secret.splitlines())} if len(text) >= MIN_SECRET_LENGTH)
    if "://" in secret:
        yield from _parts(secret)


def _parts(url: str) -> Iterator[str]:
    """Yield the passwords and secret parameters of a URL, except those that are too short."""
    for match in _USERINFO.finditer(url):
        password = (match["password"] or "").removeprefix(":")
        yield from {text for text in (password, unquote(password)) if len(text) >= MIN_SECRET_LENGTH}
    yield from (match["value"] for match in _QUERY.finditer(url) if len(match["value"]) >= MIN_SECRET_LENGTH)


def redact_and_escape(text: str) -> str:
    """Redact a text and escape its control characters, except newlines and tabs."""
    return escape_control(redact(text), keep="\n\t")


def print_traceback(error: BaseException) -> None:
    """Print an error with its traceback on standard error."""
    print(redact_and_escape("".join(traceback.format_exception(error))), end="", file=sys.stderr)


def compose_characters(text: str) -> str:
    """Return the composed spelling of a text (NFC), in which two texts that are the same in Unicode are equal."""
    return unicodedata.normalize("NFC", text)


# Names that a message lists before it says how many more there are.
MAX_LISTED = 10


def list_names(names: Iterable[object], separator: str = ", ", total: int = 0, limit: int = MAX_LISTED) -> str:
    """List the first `limit` names for a message, and say how many more there are; `total` if `names` are only some."""
    listed = [str(name) for name in names]
    total = total or len(listed)
    more = f" and {total - limit:,} more" if total > limit else ""
    return separator.join(listed[:limit]) + more


def count_noun(count: int, noun: str) -> str:
    """Format a number with its noun: `1 image`, `1,200 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


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


def describe_allowed(schema: Mapping[str, Any]) -> str:
    """Describe in words the values that a JSON schema allows: `a number above 0, or null`."""
    if "description" in schema:
        return str(schema["description"])
    if "anyOf" in schema:
        described = [describe_allowed(entry) for entry in schema["anyOf"] if entry != {"type": "null"}]
        null = ", or null" if {"type": "null"} in schema["anyOf"] else ""
        return " or ".join(described) + null
    if words := allowed_words(schema):
        return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
    if schema["type"] == "array":
        return f"a list of {describe_allowed(schema['items']).removeprefix('a ').replace('number', 'numbers', 1)}"
    if schema["type"] == "string":
        return "a non-empty string" if schema.get("minLength") else "a string"
    return {"boolean": "true or false", "null": "null"}.get(schema["type"]) or _describe_number(schema)


def _describe_number(schema: Mapping[str, Any]) -> str:
    noun = "a whole number" if schema["type"] == "integer" else "a number"
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{noun} from {low:g} to {high:.0f}"
    bounds = {"of at least ": low, "above ": above, "of at most ": high, "below ": below}
    limits = [f"{text}{bound:g}" for text, bound in bounds.items() if bound is not None]
    return " ".join(filter(None, [noun, " and ".join(limits)]))


def allowed_words(schema: Mapping[str, Any]) -> list[str]:
    """Return the words that a schema allows, its alternatives' among them."""
    own = schema.get("enum", [schema["const"]] if "const" in schema else [])
    return [
        *(word for word in own if isinstance(word, str)),
        *(word for entry in schema.get("anyOf", ()) for word in allowed_words(entry)),
    ]
