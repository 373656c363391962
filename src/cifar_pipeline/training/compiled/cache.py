"""Private cache directory for compiled code, separate for each processor, compiler and version of torch.

Loading compiled code runs it. In a directory that other users may write to, such as the shared temporary one, they
could choose what runs. Code compiled for another processor crashes with an illegal instruction.
"""

import atexit
import hashlib
import os
import platform
import shutil
import stat
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch

from cifar_pipeline.utils.console import warning
from cifar_pipeline.utils.paths import main_workspace

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
PRIVATE_MODE = 0o700
WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


@cache
def compiled_cache() -> Path:
    """Return the cache directory, and set it for inductor in this process and its children.

    TORCHINDUCTOR_CACHE_DIR is used if it is private, else a directory of the workspace, else a temporary one.
    """
    folder = _from_environment() or _in_workspace() or _temporary()
    os.environ[CACHE_VARIABLE] = str(folder)
    # Triton's default is in the home directory.
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    return folder


def is_private(path: Path) -> bool:
    """Return whether a file or directory is not a link, belongs to this user, and nobody else may write to it."""
    if not hasattr(os, "geteuid"):
        return True
    try:
        stats = path.lstat()
    except OSError:
        return False
    return stats.st_uid == os.geteuid() and not stat.S_ISLNK(stats.st_mode) and not stats.st_mode & WRITABLE_BY_OTHERS


def machine_key() -> str:
    """Return a hash of what compiled code depends on apart from its source: processor, compiler, versions."""
    key = (_processor(), _compiler(), torch.__version__, sys.version, platform.machine())
    return hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def _from_environment() -> Path | None:
    """Return the directory in TORCHINDUCTOR_CACHE_DIR, created if missing; None if unset or not private."""
    if not (name := os.environ.get(CACHE_VARIABLE)):
        return None
    folder = Path(name)
    try:
        folder.mkdir(PRIVATE_MODE, parents=True, exist_ok=True)
    except OSError as error:
        warning(f"{CACHE_VARIABLE}={folder} cannot be used ({error.strerror}); using .cache/compiled instead.")
        return None
    if is_private(folder):
        return folder
    warning(
        f"{CACHE_VARIABLE}={folder} is writable by other users, who could put code there; "
        "using .cache/compiled instead."
    )
    return None


def _in_workspace() -> Path | None:
    parent = main_workspace() / ".cache" / "compiled"
    folder = parent / machine_key()
    try:
        parent.parent.mkdir(exist_ok=True)
        for path in (parent, folder):
            if (path.exists() or path.is_symlink()) and not is_private(path):
                _remove(path)
                warning(f"{path} was not private to this user, so it was removed; code is compiled again.")
            path.mkdir(PRIVATE_MODE, exist_ok=True)
            path.chmod(PRIVATE_MODE)
    except OSError as error:
        reason = error.strerror or error
        warning(f"Compiled code cannot be cached in {folder} ({reason}); using a temporary directory for this process.")
        return None
    if not is_private(folder):  # a network file system that maps files to another user
        warning(f"{folder} cannot be made private to this user; using a temporary directory for compiled code.")
        return None
    return folder


def _temporary() -> Path:
    """Return a new directory that is removed when this process exits."""
    folder = Path(mkdtemp(prefix="compiled-"))
    process = os.getpid()
    # A forked process must not remove its parent's directory.
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == process else None)
    return folder


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _processor() -> str:
    """Return the processor's model and instruction sets as listed by Linux, elsewhere its name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    keys = ("flags", "Features", "model name", "cpu family", "model", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.partition(":")[0].strip() in keys}))


def _compiler() -> str:
    """Return the name of the C++ compiler and the output of its `--version`."""
    name = os.environ.get("CXX") or "g++"
    try:
        return name + subprocess.run([name, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return name
