"""Test the server: predictions as from predict, MLflow's protocol, and errors for input that is not an image."""

import gc
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from serving import Server, running
from small_model import CLASSES, SHAPE, random_images

from cifar_pipeline.inference.predictor import Predictor
from cifar_pipeline.inference.server import InvalidInput, bind, open_predictor, serve, to_uint8_images
from cifar_pipeline.utils.errors import UserError
from helpers.config_project import ROOT, Project
from helpers.servers import free_port, wait_for_answer

# Allowed slowdown by other tests on this machine.
MAX_SLOWDOWN = 4


def test_integers_are_images() -> None:
    converted = to_uint8_images(random_images(3).astype(np.float64), SHAPE)
    assert converted.dtype == np.uint8
    np.testing.assert_array_equal(converted, random_images(3))


def test_black_and_white_are_images() -> None:
    for level in (0, 255):
        assert (to_uint8_images(np.full((1, 4, 4, 3), float(level)), (4, 4, 3)) == level).all()


INVALID = {
    "scaled to [0, 1]": random_images(2) / 255,
    "only black and white, scaled": (random_images(2) > 99).astype(float),
    "one of two scaled": np.stack([random_images(1)[0], (random_images(1)[0] > 99)]).astype(float),
    "normalized": random_images(2) / 127.5 - 1,
    "above 255": random_images(2) + 1.0,
    "not a number": np.full((1, *SHAPE), np.nan),
}


@pytest.mark.parametrize("case", INVALID)
def test_other_numbers_are_refused_and_never_truncated(case: str) -> None:
    with pytest.raises(InvalidInput, match=r"integers from 0 \(black\) to 255 .*Send them unscaled") as refused:
        to_uint8_images(INVALID[case], SHAPE)
    assert refused.value.status == 400


def test_no_image_is_refused() -> None:
    with pytest.raises(InvalidInput, match="There is no image"):
        to_uint8_images(np.zeros((0, *SHAPE)), SHAPE)


def test_a_port_that_is_taken_is_refused() -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"Cannot listen on 127\.0\.0\.1:{port} \(Address already in use\)"):
            bind("127.0.0.1", port)


@pytest.fixture(scope="module")
def server(exported: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("served")
    Project.made(folder)
    with running(ROOT / "src" / "serve.py", folder, "--model", str(exported)) as server:
        yield server


def test_the_server_predicts_as_predict_does(server: Server, exported: Path) -> None:
    status, predictions = server.predict(random_images(3))
    assert status == 200
    expected = Predictor.open(exported).top_k(random_images(3), len(CLASSES))
    assert [prediction["class"] for prediction in predictions] == [ranking[0][0] for ranking in expected]
    for prediction, ranking in zip(predictions, expected, strict=True):
        assert prediction["probability"] == pytest.approx(ranking[0][1], abs=1e-6)
        assert prediction["probabilities"] == pytest.approx(dict(ranking), abs=1e-6)


def test_the_server_refuses_invalid_images_with_400_and_a_message(server: Server) -> None:
    status, message = server.predict(random_images(2) / 255)
    assert status == 400 and "Send them unscaled" in message and len(message) < 500
    status, message = server.predict(random_images(2)[:, :16])
    assert status == 400 and "Shape of input (2, 16, 32, 3) does not match expected shape (-1, 32, 32, 3)" in message
    invalid = ("{", "[]", '{"inputs": "cat"}', '{"inputs": [[1], [1, 2]]}', '{"inputs": []}', "", "null", '{"a": 1}')
    for body in (*invalid, "[" * 100_000, '{"inputs": ' + 5000 * "9" + "}", '{"inputs": {"a": 1, "b": 2}}'):
        status, message = server.post(body)
        assert status == 400 and message


PAGES = (ROOT / "README.md", ROOT / "docs" / "mlflow.md")
BLOCKS = {block for page in PAGES for block in re.findall(r"```console\n(.*?)```", page.read_text("utf-8"), re.S)}


@pytest.mark.parametrize("block", sorted(block for block in BLOCKS if "curl" in block))
def test_the_documented_curl_works(block: str, server: Server, exported: Path, tmp_path: Path) -> None:
    command = block.partition("$ make serve\n$ ")[2].rpartition("\n{")[0].replace(":5001", f":{server.port}")
    Image.fromarray(random_images(1)[0]).save(tmp_path / "cat.png")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    ended = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    ((name, _),) = Predictor.open(exported).top_k(random_images(1), 1)[0]
    assert json.loads(ended.stdout)["predictions"][0]["class"] == name


def test_a_kept_connection_is_not_slowed_down():
    with bind("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as client:
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert client.getpeername() == listener.getsockname()


def test_the_server_implements_mlflows_protocol(server: Server) -> None:
    """The paths, keys and statuses of MLflow's server."""
    for path in ("/ping", "/health", "/version"):
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}") as response:
            assert response.status == 200
    image = random_images(1).tolist()
    expected = server.post(json.dumps({"inputs": image}))
    assert expected[0] == 200
    assert server.post(json.dumps({"instances": image})) == expected
    assert server.post(json.dumps({"inputs": {"images": image}})) == expected
    assert server.post(json.dumps({"inputs": image, "instances": image}))[0] == 400
    body = json.dumps({"inputs": image}).encode()
    for path, content_type, status in (("/invocations", "text/plain", 415), ("/nowhere", "application/json", 404)):
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", body, {"Content-Type": content_type})
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request)
        assert refused.value.code == status and json.load(refused.value)["message"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/invocations")
    assert refused.value.code == 405


@pytest.mark.long
def test_mlflows_server_serves_the_folder(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported, tmp_path / "exported")
    port, program = free_port(), Path(sys.executable).parent / "mlflow"
    command = [program, "models", "serve", "-m", "exported", "--env-manager", "local", "--port", str(port)]
    path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "PATH": path}, start_new_session=True)
    try:
        wait_for_answer(f"http://127.0.0.1:{port}/ping", process)
        status, predictions = Server(port).predict(random_images(2))
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    assert status == 200
    expected = Predictor.open(exported).probabilities(random_images(2))
    np.testing.assert_allclose(predictions["probabilities"], expected, atol=1e-5)


def test_it_starts_in_two_seconds_without_torch_and_mlflow(exported: Path, tmp_path: Path) -> None:
    Project.made(tmp_path)
    watch = (
        "import sys, runpy, atexit; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[2:]\n"
        "heavy = {'torch', 'lightning', 'mlflow', 'pandas'}\n"
        "atexit.register(lambda: print(sorted(heavy & sys.modules.keys())))\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    script = ROOT / "src" / "serve.py"
    path = tmp_path / "conf" / "serve" / "default.yaml"
    port = free_port()
    path.write_text(path.read_text().replace("port: 5001", f"port: {port}"))
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", watch, str(script.parent), str(script), "--model", str(exported)],
        cwd=tmp_path, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for_answer(f"http://127.0.0.1:{port}/ping", process)
    seconds = time.perf_counter() - start
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert output.splitlines()[-1] == "[]"
    # Two seconds on an idle machine.
    assert seconds < 2 * MAX_SLOWDOWN


def test_loaded_objects_are_frozen_for_the_garbage_collector(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = []
    monkeypatch.setattr(uvicorn.Server, "run", lambda *_, **__: frozen.append(gc.get_freeze_count()))
    try:
        with bind("127.0.0.1", 0) as listener:
            serve(open_predictor(exported, 1, "cpu"), "a model", listener, 256)
    finally:
        gc.unfreeze()
    # This process has loaded some hundred thousand objects.
    assert frozen[0] > 100_000
