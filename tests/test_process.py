"""SIGTERM and Ctrl-C end a command within five seconds, whatever its threads are blocked in."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from cifar_pipeline.utils.process import UNCLEAN
from helpers.source_tree import SRC
from helpers.workspace import sentences

SECONDS = 5
START = """
import ctypes, os, signal, sqlite3, subprocess, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from cifar_pipeline.cli.entrypoint import run_script
from cifar_pipeline.utils.atomic import exclusive_lock

def blocked():
    # A mutex that this thread holds already: no signal interrupts it.
    mutex = ctypes.create_string_buffer(128)
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)

def read_fifo(_):
    open("fifo").read()

def main():
    print("ready", flush=True)
"""
# Python code that a command runs when it is stopped, and whether it can be cleaned up in time.
PHASES = {
    "in Python": ("while True: time.sleep(0.01)", True),
    "waiting for a lock": ("with exclusive_lock(Path('held')): pass", True),
    "in a library's code": ("blocked()", False),
    "waiting for a database": ("sqlite3.connect('held.db', timeout=300).execute('BEGIN IMMEDIATE')", False),
    "with threads that read a pipe": ("with ThreadPoolExecutor(2) as pool: list(pool.map(read_fifo, range(4)))", False),
    "with a thread that is not waited for": ("threading.Thread(target=blocked).start(); time.sleep(300)", False),
    "ending": ("try: time.sleep(300)\n    finally: blocked()", False),
    "with a process": ("subprocess.Popen(['sleep', '300']); blocked()", False),
}


@contextmanager
def locked_resources(folder):
    """Hold a lock and a database, and create a pipe without a writer."""
    os.mkfifo(folder / "fifo")
    code = (
        "from pathlib import Path; from cifar_pipeline.utils.atomic import exclusive_lock\n"
        "with exclusive_lock(Path('held')): input()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, env={"PYTHONPATH": str(SRC)}, stdin=subprocess.PIPE
    )
    try:
        with closing(sqlite3.connect(folder / "held.db", isolation_level=None)) as database:
            database.execute("CREATE TABLE t (x)")
            database.execute("BEGIN EXCLUSIVE")
            while not (folder / ".held.lock").exists():
                time.sleep(0.05)
            yield
    finally:
        holder.communicate(b"\n")


@pytest.mark.skipif(os.name == "nt", reason="Windows has neither SIGTERM nor FIFOs")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_command_within_five_seconds_in_every_phase(tmp_path, number):
    started, ended = {}, {}
    with locked_resources(tmp_path):
        for phase, (code, _) in PHASES.items():
            source = f"{START}    {code}\nrun_script(main)"
            environment = {"PYTHONPATH": str(SRC), "PATH": os.environ["PATH"]}
            started[phase] = subprocess.Popen(
                [sys.executable, "-c", source],
                cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
        for process in started.values():
            assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        children = [child for process in started.values() for child in psutil.Process(process.pid).children()]
        assert len(children) == 1
        for process in started.values():
            process.send_signal(number)
        sent = time.monotonic()
        try:
            for phase, process in started.items():
                output = process.communicate(timeout=max(0.1, sent + SECONDS - time.monotonic()))[1]
                ended[phase] = process.returncode, output
        finally:
            for process in started.values():
                process.kill()
    for phase, (_, is_clean) in PHASES.items():
        code, output = ended[phase]
        assert code == 128 + number, f"{phase}: {code}, {output}"
        (sentence,) = sentences(output)
        assert sentence in ("Stopped.", UNCLEAN.strip()), f"{phase}: {output}"
        assert not is_clean or sentence == "Stopped.", f"{phase}: {output}"
    assert sentences(ended["ending"][1]) == [UNCLEAN.strip()]
    assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_signal_to_a_forked_process_does_not_reach_its_parent():
    code = """
import os, signal, time
from cifar_pipeline.utils import process
process.GRACE_SECONDS = 0.5
process.install_signal_handlers()
child = os.fork()
if not child:
    time.sleep(60)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
os.waitpid(child, 0)
time.sleep(1)
"""
    ended = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(SRC)}, timeout=30, capture_output=True)
    assert ended.returncode == 0


def test_on_windows_a_process_ends_itself_with_its_cleanup():
    """os.kill would end it there without its signal handler, and `signal.SIGKILL` is missing."""
    code = """
import os, signal, sys
from cifar_pipeline.utils import process
sys.platform = "win32"
del signal.SIGKILL
os.kill = lambda *_: os._exit(9)
process.install_signal_handlers()
try:
    process._send_sigterm()
    signal.pause()
finally:
    print("cleanup", flush=True)
"""
    environment = {"PYTHONPATH": str(SRC)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, timeout=60, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (128 + signal.SIGTERM, "cleanup\n"), ended.stderr


@pytest.mark.parametrize(
    ("stop", "code"), [("KeyboardInterrupt()", 130), ("process.Interrupted(signal.SIGTERM)", 143), ("OSError(28)", 1)]
)
def test_a_library_that_replaces_the_interruption_hides_neither_it_nor_another_error(stop, code):
    """torch.save writes the end of its archive while an exception passes, and raises its own error if that fails."""
    program = f"""
import io, signal, torch
from cifar_pipeline.cli.entrypoint import run_script
from cifar_pipeline.utils import process

class Interrupting(io.BytesIO):
    def write(self, content):
        if self.tell() > 1000:
            raise {stop}
        return super().write(content)

def save():
    torch.save({{"weights": torch.zeros(10_000)}}, Interrupting())

run_script(save)
"""
    environment = {"PYTHONPATH": str(SRC), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == code
    assert (ended.stderr == "Stopped.\n") == (code > 100), ended.stderr
    assert ("unexpected pos" in ended.stderr) == (code == 1)


IMPORTING = """
import time
from cifar_pipeline.cli.entrypoint import exit_on_error

with exit_on_error("Stopped."):
    import torch
    time.sleep(30)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_torch_is_imported_waits_for_the_end_of_the_import(tmp_path: Path, number: int) -> None:
    """An exception in its C++ code would abort the process ("terminate called after throwing an instance of ...")."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(
        f"import os, time\nos.kill(os.getpid(), {int(number)})\ntime.sleep(0.2)\nprint('imported', flush=True)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(SRC)])
    ended = subprocess.run(
        [sys.executable, "-c", IMPORTING], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True,
        text=True, timeout=20,
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (128 + number, "imported\n", "Stopped.\n")
