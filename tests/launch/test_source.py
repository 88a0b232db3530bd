"""Frozen sources: equal ones share a folder, which no edit of the working tree changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from possam.launch.source import SNAPSHOTS, check, freeze
from possam.runtime.errors import InputError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    package = tmp_path / "possam"
    (package / "training").mkdir(parents=True)
    (package / "__init__.py").write_text("VALUE = 1\n")
    (package / "training/__init__.py").write_text("")
    (package / "weights.bin").write_bytes(b"x")
    (package / "__pycache__").mkdir()
    (package / "__pycache__/a.cpython-311.pyc").write_bytes(b"x")
    (tmp_path / "params/scales").mkdir(parents=True)
    (tmp_path / "params/scales/mini.yaml").write_text("seeds: [0]\n")
    return tmp_path


def frozen(tree: Path) -> Path:
    return freeze(root=tree, package=tree / "possam")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_package_and_parameters_are_frozen(tree: Path) -> None:
    folder = frozen(tree)
    assert names(folder) == {
        "possam/__init__.py",
        "possam/training/__init__.py",
        "params/scales/mini.yaml",
    }
    assert folder.parent == tree / SNAPSHOTS and folder.is_absolute()


def test_named_by_content(tree: Path) -> None:
    first = frozen(tree)
    inode = first.stat().st_ino
    assert frozen(tree) == first and first.stat().st_ino == inode
    (tree / "params/scales/mini.yaml").write_text("seeds: [1]\n")
    second = frozen(tree)
    assert second != first
    assert (first / "params/scales/mini.yaml").read_text() == "seeds: [0]\n"
    # the same bytes in another file are other sources
    (tree / "params/scales/mini.yaml").rename(tree / "params/scales/maxi.yaml")
    assert frozen(tree) not in (first, second)


def test_what_runs_is_the_snapshot_after_an_edit(tree: Path) -> None:
    folder = frozen(tree)
    (tree / "possam/__init__.py").write_text("VALUE = 2\n")
    code = "import possam; print(possam.VALUE)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tree,
        env={"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "1\n"


def test_an_edited_snapshot_is_refused_and_replaced(tree: Path) -> None:
    folder = frozen(tree)
    check(folder)
    path = folder / "possam/__init__.py"
    path.chmod(0o644)
    path.write_text("VALUE = 3\n")
    with pytest.raises(InputError, match="were edited"):
        check(folder)
    assert frozen(tree) == folder
    check(folder)
    path.unlink()
    with pytest.raises(InputError, match="incomplete"):
        check(folder)
