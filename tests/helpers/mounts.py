"""Mount file systems in a separate mount namespace, where the kernel allows that."""

import subprocess

import pytest

# Prefix of a command: its mounts are invisible to other processes, and end with it.
OWN_MOUNTS = ("unshare", "--mount", "--map-root-user")


def _can_mount() -> bool:
    command = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return not subprocess.run(command, capture_output=True).returncode
    except OSError:
        return False


needs_mounts = pytest.mark.skipif(not _can_mount(), reason="mounting is not allowed here")
