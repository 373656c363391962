r"""Escape the characters of a text that would act on a terminal or a page, or cannot be written: `\x1b`, `\udcff`.

File names, class names and messages come from outside. A control character moves the cursor or starts an escape
sequence, a bidirectional override shows text in another order, a lone surrogate (a byte of a file name that is no
UTF-8) cannot be encoded.
"""

import re

# C0 and DEL, C1; marks, embeddings, overrides and isolates of direction; separators of lines; surrogates; tags.
_UNSAFE = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff"
    r"\U000e0000-\U000e007f]"
)


def visible(text: str, keep: str = "") -> str:
    r"""Return the text with its unsafe characters escaped as Python writes them, except those in `keep`."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in keep else _escaped(found[0]), text)


def visible_json(text: str) -> str:
    r"""Escape the same characters in JSON as `\u001b`, so that it can be printed and reads back as it was."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in "\n\t" else _escaped_json(found[0]), text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


def _escaped_json(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[place]:02x}{units[place + 1]:02x}" for place in range(0, len(units), 2))
