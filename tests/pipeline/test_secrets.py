"""No secret leaves a stage: neither in what it says nor in any file, but where the user wrote it."""

import pytest

from helpers.workspace import Workspace, add_own

# One for each place, so that a failure says which.
MIRROR, QUERY, SOURCE, TYPED, SERVER, NAMED = (
    f"Zq7{place}hunter" for place in ("mirror", "query", "source", "typed", "server", "named")
)
SECRETS = (MIRROR, QUERY, SOURCE, TYPED, SERVER, NAMED)
URL = f"http://me:{MIRROR}@127.0.0.1:9/cifar-10-python.tar.gz?token={QUERY}"
WRITTEN_BY_THE_USER = ("params.yaml", "conf")
OWN_FAILURE = """
import os


class Failing(CrossEntropyLoss):
    def forward(self, *given):
        raise ValueError(f"no answer from {os.environ['CIFAR10_SOURCE']}")
"""


def found_in(workspace: Workspace) -> list[str]:
    """The files with a secret, and which."""
    found = []
    for path in sorted(workspace.root.rglob("*")):
        name = path.relative_to(workspace.root)
        if name.parts[0] in WRITTEN_BY_THE_USER or not path.is_file():
            continue
        content = path.read_bytes()
        found += [f"{name}: {secret}" for secret in SECRETS if secret.encode() in content]
    return found


def in_words(said: str) -> list[str]:
    return [secret for secret in SECRETS if secret in said]


@pytest.fixture
def secretive(copy: Workspace) -> Workspace:
    """A workspace whose params.yaml and CIFAR10_SOURCE hold secrets."""
    copy.edit(
        "params.yaml",
        "overrides: {trainer: {max_epochs: 3}}",
        f"overrides: {{trainer: {{max_epochs: 1}}, data: {{mirrors: ['{URL}']}}}}",
    )
    return Workspace(copy.root, f"http://me:{SOURCE}@127.0.0.1:9/folder/")


def test_no_secret_is_in_what_the_stages_say_or_write(secretive: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    said = secretive.run("dvc", "repro", "download")
    assert "me:***@127.0.0.1:9" in said
    assert "me:***@127.0.0.1:9/cifar-10-python.tar.gz?token=***" in secretive.read("composed.yaml")
    assert "me:***@127.0.0.1:9/cifar-10-python.tar.gz?token=***" in secretive.read("dvc.lock")
    said += secretive.train("seed=5", f"data.mirrors=[http://me:{TYPED}@127.0.0.1:9/a.tar.gz]")
    said += secretive.run("python", "src/evaluate.py", f"data.mirrors=[http://me:{TYPED}@127.0.0.1:9/a.tar.gz]")
    assert (secretive.root / "reports" / "report.html").is_file()
    image, answers = "reports/confusion.png", "answers.csv"
    said += secretive.run("python", "src/predict.py", image)
    said += secretive.run("python", "src/predict.py", "--csv", answers, image)
    assert in_words(said) == []
    assert found_in(secretive) == []
    # The command is there, and what it held is not.
    command = secretive.runs()[-1].data.tags["command"]
    assert "data.mirrors=[http://me:***@127.0.0.1:9/a.tar.gz]" in command


@pytest.mark.long
def test_a_server_that_does_not_answer_is_named_without_its_password(copy: Workspace) -> None:
    words = ["env", f"MLFLOW_TRACKING_URI=http://me:{SERVER}@127.0.0.1:9", f"MLFLOW_TRACKING_PASSWORD={NAMED}"]
    said = copy.run(*words, "python", "src/train.py", "seed=6", code=1)
    assert "http://me:***@127.0.0.1:9" in said
    assert in_words(said) == [] and found_in(copy) == []


@pytest.mark.long
def test_a_sweep_with_a_secret_on_its_command_line_is_refused(secretive: Workspace) -> None:
    said = secretive.train("-m", "seed=7,8", f"data.mirrors=[http://me:{TYPED}@127.0.0.1:9/a.tar.gz]", code=2)
    assert "A sweep keeps its command line in files" in said and "${oc.env:NAME}" in said
    assert in_words(said) == [] and found_in(secretive) == []


@pytest.mark.long
def test_a_sweep_writes_no_secret_of_the_configuration(secretive: Workspace) -> None:
    said = secretive.train("-m", "seed=7,8")
    assert list((secretive.root / "multirun").rglob("multirun.yaml"))
    assert in_words(said) == [] and found_in(secretive) == []
    # A failure's traceback names what the user's code said.
    add_own(secretive, OWN_FAILURE)
    secretive.write("conf/loss/failing.yaml", "_target_: own.Failing\noutput_activation: softmax\n")
    said = secretive.train("-m", "seed=9,10", "loss=failing", code=1)
    errors = list((secretive.root / "multirun").rglob("error.txt"))
    assert errors and all("me:***@127.0.0.1:9" in path.read_text() for path in errors)
    assert in_words(said) == [] and found_in(secretive) == []
