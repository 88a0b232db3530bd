"""Freed memory is kept: the next tensors cost no page faults. Collections can be put off."""

import gc
import platform
import subprocess
import sys

import pytest

from possam.runtime.memory import no_collection

ROUNDS = """
import resource
import numpy as np
{keep}

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [np.ones(20 << 20, np.uint8) for _ in range(4)]
    del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print([faults() for _ in range(4)][-1])
"""
KEEP = "from possam.runtime.memory import keep_freed_memory; keep_freed_memory()"


def page_faults(keep: str) -> int:
    """Of the fourth time that 80 MiB are asked for, filled and freed."""
    script = ROUNDS.format(keep=keep)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these settings")
def test_freed_memory_serves_again() -> None:
    assert page_faults(KEEP) < 100 < page_faults("")


@pytest.mark.parametrize("before", [True, False])
def test_collections_come_back_as_they_were(before: bool) -> None:
    was = gc.isenabled()
    try:
        (gc.enable if before else gc.disable)()
        with pytest.raises(KeyError), no_collection():
            assert not gc.isenabled()
            with no_collection():
                pass
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is before
    finally:
        (gc.enable if was else gc.disable)()
