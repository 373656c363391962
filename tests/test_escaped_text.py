"""Control characters are escaped in everything that is printed."""

import io
import json
import logging

import pytest

from cifar_pipeline.utils import console
from cifar_pipeline.utils.text import escape_control, escape_control_json

log = logging.getLogger("cifar_pipeline.tests")
ODD = "a\x1b[31m\r\x07\x9b2J\u202e\udcff\u2028z"
SHOWN = r"a\x1b[31m\r\x07\x9b2J\u202e\udcff\u2028z"


def test_unsafe_characters_are_escaped_and_letters_stay() -> None:
    assert escape_control(ODD) == SHOWN
    for text in ("für alle", "猫", "👩\u200d👧", r"C:\new", "a b"):
        assert escape_control(text) == text
    assert escape_control("a\nb\x00", keep="\n") == "a\nb\\x00"


def test_json_with_unsafe_characters_can_be_printed_and_parsed() -> None:
    text = escape_control_json(json.dumps({"file": ODD + "\U000e0041"}, ensure_ascii=False))
    text.encode()
    assert escape_control(text) == text
    assert json.loads(text) == {"file": ODD + "\U000e0041"}


@pytest.mark.parametrize("name", ["stdout_console", "stderr_console"])
@pytest.mark.parametrize("is_terminal", [True, False])
def test_printed_lines_are_escaped(name: str, is_terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    page = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    output = getattr(console, name)
    monkeypatch.setattr(output, "_file", page)  # `file` would be restored as the stream of this test
    monkeypatch.setattr(output, "_force_terminal", is_terminal)
    {"stdout_console": log.info, "stderr_console": log.warning}[name](ODD)
    output.print(ODD, markup=False)  # as a table's cell, without the log
    page.flush()
    text = page.buffer.getvalue().decode()
    assert SHOWN in text
    assert text.count(r"\x1b[31m") == 2
    assert not {"\x1b[31m", "\x9b", "\u202e", "\u2028"} & set(text.splitlines()) and "\u202e" not in text
    assert "\x1b[31m" not in text and "\x9b" not in text
