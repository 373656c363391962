"""Find the private folder for compiled code: that of the workspace, for this processor, compiler and version of torch.

Compiled code is run when it is loaded. A folder that others may write to, such as the shared temporary one, would let
them choose what runs; code for another processor ends the process with an illegal instruction.
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

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
PRIVATE = 0o700
OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH


@cache
def compiled_cache() -> Path:
    """Return the folder for compiled code, and have inductor use it; processes started from here inherit it.

    A folder that the user names in TORCHINDUCTOR_CACHE_DIR is taken where it is safe. Where the workspace has no place
    for one, a new temporary folder is used, and a warning says so.
    """
    folder = _named() or _in_workspace() or _temporary()
    os.environ[VARIABLE] = str(folder)
    # Triton's own default is a folder of the home directory.
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "triton"))
    return folder


def is_private(path: Path) -> bool:
    """Return whether a file or folder, itself no link, is this user's and nobody else may write to it."""
    if not hasattr(os, "geteuid"):
        return True
    try:
        found = path.lstat()
    except OSError:
        return False
    return found.st_uid == os.geteuid() and not stat.S_ISLNK(found.st_mode) and not found.st_mode & OTHERS_WRITE


def machine_key() -> str:
    """Return a hash of what compiled code depends on beside its source: processor, compiler, versions."""
    facts = (_processor(), _compiler(), torch.__version__, sys.version, platform.machine())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _named() -> Path | None:
    """Return the folder that the environment names, made if it is missing; None where it is not private."""
    if not (name := os.environ.get(VARIABLE)):
        return None
    folder = Path(name)
    try:
        folder.mkdir(PRIVATE, parents=True, exist_ok=True)
    except OSError as error:
        warning(f"{VARIABLE}={folder} cannot be used ({error.strerror}): the workspace's .cache/compiled is taken.")
        return None
    if is_private(folder):
        return folder
    warning(f"{VARIABLE}={folder} may be written to by others, who could put code there: .cache/compiled is taken.")
    return None


def _in_workspace() -> Path | None:
    parent = main_workspace() / ".cache" / "compiled"
    folder = parent / machine_key()
    try:
        parent.parent.mkdir(exist_ok=True)
        for path in (parent, folder):
            if (path.exists() or path.is_symlink()) and not is_private(path):
                _remove(path)
                warning(f"{path} was not this user's alone, and is made anew: code is compiled again.")
            path.mkdir(PRIVATE, exist_ok=True)
            path.chmod(PRIVATE)
    except OSError as error:
        reason = error.strerror or error
        warning(
            f"Compiled code cannot be kept in {folder} ({reason}): it goes to a temporary folder, for this time only."
        )
        return None
    if not is_private(folder):  # a network file system that gives files to another user
        warning(
            f"{folder} does not stay this user's alone: compiled code goes to a temporary folder, for this time only."
        )
        return None
    return folder


def _temporary() -> Path:
    """Return a new folder that goes with this process."""
    folder = Path(mkdtemp(prefix="compiled-"))
    process = os.getpid()
    # A forked process must not take its parent's folder along.
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == process else None)
    return folder


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _processor() -> str:
    """Return what the processors can do, as Linux lists it, and elsewhere their name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    of_interest = ("flags", "Features", "model name", "cpu family", "model", "CPU implementer", "CPU part")
    return "\n".join(sorted({line for line in lines if line.partition(":")[0].strip() in of_interest}))


def _compiler() -> str:
    """Return the C++ compiler and its version, as it says it."""
    name = os.environ.get("CXX") or "g++"
    try:
        return name + subprocess.run([name, "--version"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        return name
