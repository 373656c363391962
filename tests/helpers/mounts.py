"""Mounts in a namespace of a process's own, where the kernel lets a user have one."""

import subprocess

import pytest

# Before a command: what it mounts is gone when it ends, and nobody else sees it.
OWN_MOUNTS = ("unshare", "--mount", "--map-root-user")


def _can_mount() -> bool:
    command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return not subprocess.run(command, capture_output=True).returncode
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(not _can_mount(), reason="nothing may be mounted here")
