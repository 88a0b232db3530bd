"""A cache that cannot be written is replaced, and a line says so once."""

import errno
import os
from pathlib import Path

import pytest

from possam.runtime import caches


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Folders whose disk is full; tests add to it."""
    names: list[str] = []
    real = caches.write_fault

    def fault(folder: Path) -> OSError | None:
        if any(name in str(folder) for name in names):
            return OSError(errno.ENOSPC, "No space left on device")
        return real(folder)

    monkeypatch.setattr(caches, "write_fault", fault)
    return names


def test_a_folder_is_tried_by_writing(tmp_path: Path) -> None:
    assert caches.write_fault(tmp_path / "new") is None
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "file").touch()
    assert isinstance(caches.write_fault(tmp_path / "file"), OSError)


def test_numba_s_folders_in_their_order(
    tmp_path: Path, full: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    assert caches.numba_folder() == tmp_path / "own"
    full.append("own")
    assert caches.numba_folder() == Path(caches.__file__).parents[1] / "__pycache__"
    full.append("__pycache__")
    assert caches.numba_folder() == tmp_path / "home" / "numba"
    full.append("home")
    assert caches.numba_folder() is None


def test_without_any_cache_loops_are_compiled_for_now(
    full: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import numba

    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    full.append("/")
    caches.settle_numba.__wrapped__()
    assert Path(numba.config.CACHE_DIR).is_dir()
    assert "NUMBA_CACHE_DIR" in capsys.readouterr().err


def test_triton_s_cache(tmp_path: Path, full: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_HOME", str(tmp_path))
    monkeypatch.setenv("TRITON_CACHE_DIR", "")
    monkeypatch.delenv("TRITON_CACHE_DIR")
    caches.settle_triton()
    assert "TRITON_CACHE_DIR" not in os.environ
    full.append(".triton")
    caches.settle_triton()
    assert Path(os.environ["TRITON_CACHE_DIR"]).is_dir()
