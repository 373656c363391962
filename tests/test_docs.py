"""What docs/promises.md says holds a promise is there."""

import re

from source import SRC

ROOT = SRC.parent
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "docs" / "promises.md").read_text(encoding="utf-8"))


def test_every_test_that_is_named_exists():
    assert len(NAMED) > 20
    missing = [
        f"{file}::{name}"
        for file, name in NAMED
        if not (ROOT / file).is_file() or f"\ndef {name}(" not in (ROOT / file).read_text(encoding="utf-8")
    ]
    assert missing == []


def test_long_ones_are_called_long():
    for line in (ROOT / "docs" / "promises.md").read_text(encoding="utf-8").splitlines():
        for file, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line):
            before = (ROOT / file).read_text(encoding="utf-8").partition(f"\ndef {name}(")[0]
            decorators = before.rpartition("\n\n")[2]
            assert ("@pytest.mark.long" in decorators) == ("(*long*)" in line), name
