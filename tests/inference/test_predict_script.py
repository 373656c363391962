"""Test `python src/predict.py`: table, JSON and CSV, a line for each unreadable file, exit codes."""

import csv
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from PIL import Image
from small_model import CLASSES, random_images

from cifar_pipeline.reporting import tables as pages
from helpers.config_project import ROOT, Project, run
from predict import predict


@pytest.fixture
def files(project: Project, exported: Path) -> Project:
    """Create two images and a damaged one in a project with a model."""
    project.edit("conf/predict/default.yaml", "model: models", f"model: {exported}")
    for number, pixels in enumerate(random_images(2)):
        Image.fromarray(pixels).save(project.folder / f"{number}.png")
    (project.folder / "bad [1].png").write_bytes((project.folder / "0.png").read_bytes()[:500])
    return project


def test_predict_prints_a_table_and_a_line_for_the_bad_file(files: Project) -> None:
    ended = run(predict, "0.png", "bad [1].png", "1.png")
    assert ended.code == 1
    lines = ended.out.splitlines()
    assert lines[0].startswith("Model: ") and lines[0].endswith("trained on drawn")
    assert lines[1].split() == ["file", "class", "probability", "runner-up"]
    assert [line.split()[0] for line in lines[3:]] == ["0.png", "1.png"]
    assert all(line.split()[1] in CLASSES and line.split()[3] == "%" for line in lines[3:])
    assert ended.err.startswith("bad [1].png: damaged (") and ended.err.count("\n") == 1


def test_success_is_exit_code_0_and_nothing_on_standard_error(files: Project) -> None:
    ended = run(predict, "1.png")
    assert (ended.code, ended.err) == (0, "")


def test_json_is_a_line_for_each_file_and_nothing_else(files: Project) -> None:
    ended = run(predict, ".", "--json", "--top", 3)
    assert ended.code == 1
    first, second, bad = map(json.loads, ended.out.splitlines())
    assert [first["file"], second["file"], bad["file"]] == ["0.png", "1.png", "bad [1].png"]
    assert len(first["probabilities"]) == 3 and first["class"] == next(iter(first["probabilities"]))
    assert first["probability"] == max(first["probabilities"].values())
    assert bad["error"].startswith("damaged") and "class" not in bad


def test_csv_is_a_row_for_each_file(files: Project) -> None:
    ended = run(predict, "0.png", "bad [1].png", "--csv", "predictions.csv", "--top", 1)
    assert (ended.code, ended.out) == (1, "Wrote the predictions to predictions.csv.\n")
    good, bad = csv.DictReader(io.StringIO((files.folder / "predictions.csv").read_text()))
    assert good["class"] in CLASSES and 0 < float(good["probability"]) <= 1 and good["error"] == ""
    assert bad["class"] == "" and bad["error"].startswith("damaged")


def test_paths_come_from_standard_input(files: Project) -> None:
    ended = run(predict, "-", "--json", listed="1.png\n0.png\n")
    assert [json.loads(line)["file"] for line in ended.out.splitlines()] == ["1.png", "0.png"]


def test_a_closed_standard_input_is_needed_for_a_list_only(files: Project) -> None:
    command = ["/bin/sh", "-c", f'exec {sys.executable} {ROOT / "src" / "predict.py"} "$@" <&-', "sh"]
    listed = subprocess.run([*command, "-"], capture_output=True, text=True)
    assert (listed.returncode, listed.stdout) == (2, "")
    assert (
        listed.stderr.startswith("- reads paths from standard input, which is closed")
        and listed.stderr.count("\n") == 1
    )
    assert subprocess.run([*command, "1.png"], capture_output=True).returncode == 0


def test_a_line_without_end_in_a_list_is_refused_before_it_takes_memory(files: Project) -> None:
    ended = run(predict, "-", "--json", listed="0.png\n" + "x" * 10_000_000)
    assert ended.code == 2
    assert "Line 2 of the list of paths has 100,000 bytes or more; write one path per line." in ended.err


def test_paths_that_cannot_exist_are_told_with_their_reason(files: Project) -> None:
    long = "a" * 300
    ended = run(predict, long, "0.png/x.png", "1.png")
    assert ended.code == 1 and "1.png" in ended.out
    assert ended.err == f"{long}: cannot be read (file name too long)\n0.png/x.png: cannot be read (not a directory)\n"
    for arguments in (("--csv", long), ("--model", long), ("--csv", "0.png/x.csv")):
        ended = run(predict, "1.png", *arguments)
        assert ended.code == 2 and arguments[1].partition("/")[0] in ended.err and ended.err.count("\n") == 1


def test_a_file_is_found_in_both_spellings_of_unicode(files: Project) -> None:
    (files.folder / "0.png").rename(files.folder / "cafe\u0301.png")
    (prediction,) = run(predict, "--json", "caf\u00e9.png").out.splitlines()
    assert json.loads(prediction)["file"] == "cafe\u0301.png"


def test_pages_of_a_long_table_fit_together(files: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 2)
    monkeypatch.setenv("COLUMNS", "100")
    lines = run(predict, *["0.png"] * 5).out.splitlines()
    assert len(lines) == 1 + 2 + 5
    assert len(set(lines[3:])) == 1


def test_progress_is_shown_on_standard_error_for_many_files(files: Project) -> None:
    files.edit("conf/predict/default.yaml", "batch_size: 256", "batch_size: 2")
    ended = run(predict, *["0.png"] * 10, "--json", seconds=0)
    assert [json.loads(line)["class"] for line in ended.out.splitlines()]
    assert "Images: 50 %" in ended.err and "Images: 100 %" in ended.err
    assert "Images" not in run(predict, *["0.png"] * 10, "--json").err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--top", "11"], "--top 11 must be between 1 and 10, the number of classes of this model."),
        (["--top", "0"], "--top 0 must be between 1 and 10"),
        (["--model", "nowhere"], "There is no model in nowhere: `dvc repro train` makes one"),
        (["--rev", "v1"], "There are no revisions"),
        (["--rev", "v1", "--model", "models:/cifar10@champion"], "is kept in MLflow, not in a revision of DVC"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_invalid_arguments_are_refused_in_a_sentence(files: Project, arguments: list[str], sentence: str) -> None:
    ended = run(predict, "0.png", *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert sentence in ended.err and ended.err.count("\n") == 1


@pytest.mark.parametrize(("arguments", "what"), [([""], "an argument"), (["0.png", "--csv="], "--csv=")])
def test_an_empty_argument_is_not_the_current_folder(files: Project, arguments: list[str], what: str) -> None:
    ended = run(predict, *arguments)
    assert (ended.code, ended.out) == (2, "")
    assert f"{what} is empty; is a variable of the shell unset?" in ended.err


def test_an_invalid_value_in_conf_is_refused(files: Project) -> None:
    files.edit("conf/predict/default.yaml", "top_k: 2", "top_k: all")
    ended = run(predict, "0.png")
    assert ended.code == 2 and "predict.top_k=all" in ended.err


@pytest.mark.skipif(os.name == "nt", reason="Windows has no FIFOs")
def test_predictions_are_written_to_a_fifo_that_stays_one(files: Project) -> None:
    content: list[str] = []
    os.mkfifo("predictions")
    reader = threading.Thread(target=lambda: content.append(Path("predictions").read_text(encoding="utf-8")))
    reader.start()
    ended = run(predict, "0.png", "--csv", "predictions")
    reader.join(10)
    assert (ended.code, ended.out) == (0, "")
    assert content[0].splitlines()[0].startswith("file,class,probability") and "0.png" in content[0]
    assert Path("predictions").is_fifo()


def test_a_folder_as_the_csv_file_is_refused_before_the_model_is_loaded(files: Project) -> None:
    ended = run(predict, "0.png", "--csv", ".", "--model", "nowhere")
    assert (ended.code, ended.out) == (2, "") and "is a folder, but a file will be written there" in ended.err


def test_skipped_files_are_counted_on_standard_error(files: Project) -> None:
    folder = files.folder / "some"
    for name in ("@eaDir/0.png", ".thumbnails/0.png", "deep/0.png"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes((files.folder / "0.png").read_bytes())
    (folder / "notes.txt").touch()
    os.mkfifo(folder / "pipe.png")
    ended = run(predict, "some", "--json")
    assert ended.code == 0
    (prediction,) = map(json.loads, ended.out.splitlines())
    assert prediction["file"] == "some/deep/0.png"
    assert ended.err == (
        "Skipped in folders: 4 files, such as some/.thumbnails: hidden or system file (2); "
        ".txt is not an image suffix (1); a named pipe, not a file (1).\n"
    )


def test_a_pipe_and_an_invalid_list_of_paths_are_reported_in_a_line(files: Project) -> None:
    os.mkfifo(files.folder / "pipe.png")
    ended = run(predict, "pipe.png", "0.png")
    assert (ended.code, ended.err) == (1, "pipe.png: a named pipe, not a file\n")
    ended = run(predict, "-", listed="0.png\n1.png\0bad\n")
    assert ended.code == 2 and "Line 2 of the list of paths contains a NUL byte; write one path per line" in ended.err


def test_one_image_is_classified_without_importing_training_packages(files: Project) -> None:
    """It takes 1.5 seconds on an idle machine; CPU time, which is tested, depends less on the load."""
    watch = (
        "import atexit, runpy, sys, time; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[2:]\n"
        "heavy = {'torch', 'lightning', 'mlflow', 'pandas', 'onnxscript', 'captum'}\n"
        "atexit.register(lambda: print(sorted(heavy & sys.modules.keys()), time.process_time()))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = ROOT / "src" / "predict.py"
    command = [sys.executable, "-c", watch, str(script.parent), str(script), "0.png", "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    prediction, report = ended.stdout.splitlines()
    assert json.loads(prediction)["class"] in CLASSES
    loaded, _, seconds = report.rpartition(" ")
    assert loaded == "[]" and float(seconds) < 3
