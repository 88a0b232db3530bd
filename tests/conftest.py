"""Fixtures that several test folders share."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real samples beside the repository; without it the test is skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "samples").is_dir():
        pytest.skip("the real samples (../shared/samples) are not beside this checkout")
    return folder
