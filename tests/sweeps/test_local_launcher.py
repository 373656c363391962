"""A sweep runs with the launcher of conf/local/default.yaml, and its jobs have the secrets of .env and write none."""

import pytest

from helpers.workspace import Workspace

# In two parts, because the workspace has a copy of this file.
SECRET = "Zq7" + "hunter"
FAILING = f"""
import os

from torch import nn


class Failing(nn.Module):
    def forward(self, logits, labels):
        assert os.environ["PLAIN"].startswith("{SECRET[:3]}")
        raise ValueError("no answer to " + os.environ["PLAIN"])
"""


@pytest.mark.long
def test_the_jobs_have_the_secrets_and_write_none(
    never_swept: Workspace, tmp_path_factory: pytest.TempPathFactory
) -> None:
    copy = never_swept.copy(tmp_path_factory.mktemp("local") / "copy")
    copy.write("src/failing.py", FAILING)
    copy.write("conf/loss/failing.yaml", "_target_: failing.Failing\noutput_activation: softmax\n")
    (copy.root / "conf" / "local").mkdir(exist_ok=True)
    settings = "runtime: {threads: 1}\nlauncher: joblib\nhydra: {launcher: {n_jobs: 2}}\n"
    copy.write("conf/local/default.yaml", settings)
    copy.write(".env", f"PLAIN={SECRET}\n")
    said = copy.train("-m", "seed=1,2", "loss=failing", "mlflow.description='${oc.env:PLAIN}'", code=1)
    assert said.count("no answer to ***") >= 1 and SECRET not in said
    files = [path for path in copy.root.rglob("*") if path.is_file() and path.name != ".env"]
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    errors = list((copy.root / "multirun").rglob("error.txt"))
    assert len(errors) == 2 and all("no answer to ***" in path.read_text() for path in errors)
    logged = list((copy.root / "multirun").rglob("multirun.yaml"))
    assert logged and "JoblibLauncher" in logged[0].read_text()
