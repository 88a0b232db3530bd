"""Debian's chromium without a window: screenshots and what pages say on their console."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--enable-logging=stderr",
)


def find_chromium() -> str:
    """The browser; without one the test is skipped, but not in CI, which installs it."""
    found = shutil.which("chromium")
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is not installed; .ci/run should have installed it")
        pytest.skip("chromium is not installed (Debian's package chromium)")
    return found


def take_screenshot(
    address: str, png: Path, *, profile: Path, size: tuple[int, int] = (1280, 1600), wait_s: int = 5
) -> list[str]:
    """Load ``address``, write its picture to ``png``, and return the console's lines.

    Args:
        profile: an empty folder for the browser's own files.
        wait_s: seconds of the page's own clock until the picture is taken.
    """
    done = subprocess.run(
        [
            find_chromium(),
            *_FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            f"--virtual-time-budget={1000 * wait_s}",
            f"--screenshot={png}",
            address,
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return re.findall(r":CONSOLE[:(]\d+.*", done.stderr)
