"""history.csv is read back as it was written, or rejected with one sentence."""

import pytest

from cifar_pipeline.reporting.tables import read_history
from cifar_pipeline.utils.errors import UserError

HEAD = "epoch,train/loss,train/accuracy\n"


def test_the_history_of_a_training_is_read() -> None:
    table = read_history(HEAD + "1,2.5,0.1\n2,,0.2\n", "history.csv")
    assert table["epoch"].tolist() == [1, 2] and table["train/accuracy"].tolist() == [0.1, 0.2]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "No columns"),
        (HEAD, "it has no epochs"),
        ("epoch,train/loss\n1,2\n", "it has no column train/accuracy"),
        (HEAD + "1,2.5,0.1,7\n", "more cells"),
        (HEAD + "1,2.5,0.1\n2,2.5,0.1,7\n", "Expected 3 fields in line 3, saw 4"),
        (HEAD + "1,low,0.1\n", "could not convert string to float"),
        (HEAD + '1,"2.5,0.1\n', "EOF inside string"),
        (HEAD + "1,2.5,\ufffd\n", "could not convert"),
    ],
)
def test_anything_else_is_refused_in_a_sentence(text: str, reason: str) -> None:
    with pytest.raises(UserError, match=f"history.csv is damaged .*{reason}.*: run `dvc repro -f train`"):
        read_history(text, "history.csv")
