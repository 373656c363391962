"""`make bench`: measuring commands, ratios and targets, reports, and a smoke test of each section."""

import json
import resource

import pytest
import yaml
from copied_project import copy_of_the_project
from measure import CommandFailed, Row, Workspace, alternate, write_report
from run import SECTIONS
from scripts import output_of
from workload_sizes import TINY

from helpers.config_project import ROOT


@pytest.fixture
def workspace(tmp_path):
    """A directory with two scripts that record that they ran."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("one", "two"):
        script = f"open('order', 'a').write('{name} ')\nprint('a line')\nprint('{{\"seconds\": 2.5}}')"
        (tmp_path / "benchmarks" / f"{name}.py").write_text(script)
    return Workspace(tmp_path, {"VARIABLE": "value"})


def test_scripts_alternate_and_their_last_line_is_the_result(workspace):
    results = alternate(workspace, {"one": [], "two": []}, 2)
    assert results == {"one": [{"seconds": 2.5}] * 2, "two": [{"seconds": 2.5}] * 2}
    assert (workspace.root / "order").read_text() == "one two one two "


def test_a_process_is_measured_with_its_memory_and_variables(workspace):
    code = "import os, time; kept = bytearray(10**8); kept[::4096] = b'x' * len(kept[::4096]); time.sleep(0.3)"
    ended = workspace.run("python", "-c", f"{code}; print(os.environ['VARIABLE'])")
    assert ended.output == "value\n"
    # On Linux a child process starts with the peak memory of its parent.
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    assert 0.3 < ended.seconds < 5 and 0.1 < ended.peak_gigabytes < max(0.5, own + 0.1)


def test_a_command_that_fails_raises(workspace):
    with pytest.raises(CommandFailed, match=r"ended with 1: [\s\S]*ZeroDivisionError"):
        workspace.run("python", "-c", "1 / 0")


@pytest.mark.parametrize(
    ("row", "ratio", "is_met"),
    [
        (Row("", "s", [1, 2, 9], [10, 8, 99], at_least=5), 5, True),
        (Row("", "s", [2], [9.9], at_least=5), 4.95, False),
        (Row("", "images/s", [95], [100], at_least=0.95), 0.95, True),
        (Row("", "images/s", [90], [100], at_least=0.95), 0.9, False),
        (Row("", "s", [7, 9, 8], at_most=8), None, True),
        (Row("", "GB", [1.6], at_most=1.5), None, False),
        (Row("", at_least=3, not_measured="no jax"), None, None),
        (Row("", "ms", [4, 5]), None, None),
    ],
)
def test_medians_are_compared_with_the_target(row, ratio, is_met):
    assert (row.ratio, row.is_met) == (pytest.approx(ratio) if ratio else None, is_met)


def test_the_report_has_every_row_and_the_rows_not_measured(tmp_path):
    machine = {"processor": "abacus", "cores": 2, "system": "here", "load_at_start": 0.1, "versions": {"torch": "2"}}
    head = {"command": "c", "date": "d", "commit": "e", "seconds": 1.0, "data": "pixels", "machine": machine}
    rows = [
        Row("fast", "s", [1.0, 2.0, 4.0], [30.0, 20.0, 10.0], at_least=5, note="extrapolated"),
        Row("jax", at_least=3, not_measured="jax is not installed"),
    ]
    write_report(tmp_path, head, rows)
    text = (tmp_path / "bench.md").read_text()
    assert "| fast | 2 s [1 - 4] | 20 s [10 - 30] | 10.00 | >= 5 | yes |" in text
    assert "| jax |  |  |  | >= 3 | not measured |" in text and "abacus, 2 cores" in text
    assert "- fast: extrapolated\n- jax: jax is not installed\n" in text
    kept = json.loads((tmp_path / "bench.json").read_text())
    assert kept["rows"][0]["ours"] == [1.0, 2.0, 4.0] and kept["rows"][0]["ratio"] == 10 and kept["rows"][0]["met"]


def test_the_copy_of_the_project_has_what_the_stages_depend_on():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()
    outputs = {name for stage in stages for out in stage["outs"] for name in out}
    with copy_of_the_project(TINY) as copied:
        image_dir = yaml.safe_load((copied.root / "params.yaml").read_text())["image_dir"]
        dependencies = {path.replace("${image_dir}", image_dir) for stage in stages for path in stage["deps"]}
        assert [path for path in dependencies - outputs if not (copied.root / path).exists()] == []


@pytest.mark.long
@pytest.mark.parametrize("section", SECTIONS)
def test_every_section_runs(section, tmp_path):
    output_of("run", "--tiny", "--only", section, "--reports", str(tmp_path))
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert rows and all(row["ours"] or row["not_measured"] for row in rows)
