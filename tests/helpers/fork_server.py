"""Start scripts in forks of a process that has imported the installed libraries, which takes seconds in a new one.

    python fork_server.py DESCRIPTOR LIFELINE  (of a listening socket, and of a pipe that closes when the tests end)

For the default test run, with one server for all its processes; with `make test-long` each command is a new process.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from filelock import FileLock

# The variable with the path of the server's socket, which tests/conftest.py sets and which no command inherits.
ADDRESS = "TESTS_FORK_SERVER"
# Imported by trainings, evaluations and sweeps, and without threads, which a fork would lack (onnxruntime has one).
# Nothing of this project: each workspace has its own code.
LIBRARIES = (
    "alembic.command", "dvc.cachemgr", "dvc.cli", "dvc.commands.repro", "dvc.render", "dvc.repo.reproduce",
    "hydra.main", "hydra._internal.hydra", "importlib_metadata", "lightning.pytorch", "matplotlib.pyplot", "mlflow",
    "mlflow.onnx", "mlflow.pyfunc", "mlflow.store.model_registry.sqlalchemy_store",
    "mlflow.store.tracking.sqlalchemy_store", "networkx", "onnx.reference", "onnxscript._framework_apis.torch_2_5",
    "onnxscript.function_libs.torch_lib.ops",
    "pandas", "ruamel.yaml", "sklearn.datasets", "sqlalchemy.dialects.sqlite", "torch._dynamo", "torch._inductor",
    "torch.export", "torch.onnx", "torch.onnx._internal.exporter._core", "torch.utils.data", "torchmetrics",
    "torchvision.transforms.v2",
)  # fmt: skip
MAX_MESSAGE = 1 << 20
# Of a process id and of an exit code.
NUMBER_BYTES = 16
# A command `python` for DVC: it starts a script in a fork, waits, and ends as that did; without a script it is Python.
COMMAND = """#!{python} -SE
import json, os, signal, socket, sys
script = sys.argv[1:]
if not script or not script[0].endswith(".py"):
    os.execv({python!r}, [{python!r}, *script])
reading, status = os.pipe()
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
    connection.connect({address!r})
    message = json.dumps([script, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(connection, [message], [1, status])
os.close(status)
pid = int(os.read(reading, {number_bytes}))
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda number, _: os.kill(pid, number))
code = int(os.read(reading, {number_bytes}))
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


class ForkedProcess:
    """A process of the fork server, with the methods of subprocess.Popen that tests use."""

    def __init__(self, pid: int, output: int, status: int) -> None:
        self.pid, self.stdout, self._status = pid, os.fdopen(output, encoding="utf-8"), status
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = int(os.read(self._status, NUMBER_BYTES))
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        with self.stdout:
            output = self.stdout.read()
        self.wait(timeout)
        return output, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start_server(address: str) -> None:
    """Start the server, which ends with this process."""
    lifeline, _ = os.pipe()  # its other end stays open as long as this process
    # Python's own variables would act on all forks, also on those whose environment lacks them.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    variables = inherited | {"PYTHONUTF8": "1", "OMP_NUM_THREADS": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(address)
        listening.listen()
        descriptors = [listening.fileno(), lifeline]
        command = [sys.executable, __file__, *map(str, descriptors)]
        subprocess.Popen(command, pass_fds=descriptors, env=variables, cwd="/")
    os.close(lifeline)


def connect() -> socket.socket:
    """Connect to the server; the first process of a test run that needs it starts it."""
    address, connection = os.environ[ADDRESS], socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with FileLock(f"{address}.lock"):
        try:
            connection.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            Path(address).unlink(missing_ok=True)
            start_server(address)
            connection.connect(address)
    return connection


def command_folder() -> Path:
    """Return a folder with the command `python` that starts scripts in forks."""
    address = os.environ[ADDRESS]
    command = Path(f"{address}-bin") / "python"
    with FileLock(f"{address}.lock"):
        if not command.exists():
            command.parent.mkdir()
            command.write_text(COMMAND.format(python=sys.executable, address=address, number_bytes=NUMBER_BYTES))
            command.chmod(0o755)
    connect().close()  # starts the server
    return command.parent


def start_fork(script: Sequence[str], folder: Path, environment: dict[str, str]) -> ForkedProcess:
    """Start a script with its arguments; its output and errors are in one stream."""
    output, write_output = os.pipe()
    status, write_status = os.pipe()
    message = json.dumps([list(script), str(folder), environment]).encode()
    with connect() as connection:
        socket.send_fds(connection, [message], [write_output, write_status])
    for descriptor in (write_output, write_status):
        os.close(descriptor)
    pid = os.read(status, NUMBER_BYTES)
    assert pid, f"the fork server has not started {script}"
    return ForkedProcess(int(pid), output, status)


def serve(listening: socket.socket, lifeline: int) -> None:
    """Fork a process for each message, and return in that process, in place of which its script then runs.

    Reports its process id and, at its end, its exit code.
    """
    for name in LIBRARIES:
        importlib.import_module(name)
    # MLflow lists the modules of all packages once in a process.
    importlib.import_module("mlflow.utils.requirements_utils")._init_packages_to_modules_map()
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    statuses: dict[int, int] = {}
    while True:
        ready, _, _ = select.select([listening, lifeline, woken], [], [])
        if lifeline in ready:
            os._exit(0)
        if woken in ready:
            os.read(woken, MAX_MESSAGE)
            report_ended(statuses)
        if listening not in ready:
            continue
        with listening.accept()[0] as connection:
            message, descriptors, *_ = socket.recv_fds(connection, MAX_MESSAGE, 2)
        if not message:  # only connected, to start the server
            continue
        output, status = descriptors
        # A fork of a process with these libraries takes 0.07 s, so there is one for each command.
        if pid := os.fork():
            os.close(output)
            write(status, pid)
            statuses[pid] = status
        else:
            signal.set_wakeup_fd(-1)
            for descriptor in (lifeline, woken, wake, status, *statuses.values()):
                os.close(descriptor)
            listening.close()
            become(json.loads(message), output)
            return


def report_ended(statuses: dict[int, int]) -> None:
    """Write the exit code of each process that has ended to its descriptor, and close that."""
    while statuses:
        pid, code = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        status = statuses.pop(pid)
        write(status, os.waitstatus_to_exitcode(code))
        os.close(status)


def write(status: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # the process that asked has ended
        os.write(status, str(number).encode().ljust(NUMBER_BYTES))


def become(message: list[Any], output: int) -> None:
    """Take over arguments, folder, environment and output of a new process, and Python's defaults."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.close(output)
    arguments, folder, environment = message
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    sys.dont_write_bytecode = bool(environment.get("PYTHONDONTWRITEBYTECODE"))
    sys.argv = arguments
    folders = [str(Path(arguments[0]).resolve().parent), *environment.get("PYTHONPATH", "").split(os.pathsep)]
    sys.path[:1] = filter(None, folders)


def run_and_exit(script: str) -> NoReturn:
    """Run a script and end the process as Python does, without freeing the libraries, which takes seconds in a fork."""
    code: int | str | None = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]))
    run_and_exit(sys.argv[0])
