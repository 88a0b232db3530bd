"""Atomic files: complete or absent, whatever happens while they are written."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from possam.runtime.errors import InputError
from possam.runtime.files import (
    atomic_directory,
    atomic_path,
    atomic_write,
    hash_json,
    link_to,
    read_json,
    sha256_file,
    write_json,
)


def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as stream:
        stream.write("new")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_name_appears_only_when_the_file_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.bin"
    with atomic_write(path, "wb") as stream:
        stream.write(b"x" * 100)
        assert not path.exists()
    assert path.read_bytes() == b"x" * 100


def test_a_directory_replaces_its_older_self_whole(tmp_path: Path) -> None:
    path = tmp_path / "d"
    for name in ("first", "second"):
        with atomic_directory(path) as temporary:
            (temporary / name).write_text(name)
    assert [p.name for p in path.iterdir()] == ["second"]
    with pytest.raises(RuntimeError), atomic_directory(path) as temporary:
        (temporary / "third").write_text("")
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["second"]
    assert list(tmp_path.iterdir()) == [path]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)  # fmt: skip


@given(value=JSON)
def test_json_round_trip(tmp_path_factory: pytest.TempPathFactory, value) -> None:
    path = tmp_path_factory.mktemp("json") / "v.json"
    write_json(path, value)
    assert read_json(path) == value
    assert hash_json(value) == hash_json(read_json(path))


def test_the_hash_ignores_the_order_of_keys_only() -> None:
    assert hash_json({"a": 1, "b": [1, 2]}) == hash_json({"b": [1, 2], "a": 1})
    assert hash_json([1, 2]) != hash_json([2, 1])


def test_nan_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        write_json(tmp_path / "v.json", {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_bad_json_is_an_error_with_the_files_name(tmp_path: Path) -> None:
    path = tmp_path / "v.json"
    path.write_text('{"a": 1')
    with pytest.raises(InputError, match=r"v\.json.*truncated"):
        read_json(path)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "absent.json")


def test_file_hash(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"possam" * 1000)
    assert sha256_file(path) == hashlib.sha256(b"possam" * 1000).hexdigest()


def test_a_link_inside_the_working_folder_survives_a_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, outside = tmp_path / "checkout", tmp_path / "outside.zip"
    (checkout / "upstream").mkdir(parents=True)
    (checkout / "upstream/a.zip").write_text("inside")
    outside.write_text("outside")
    monkeypatch.chdir(checkout)
    for name, place in (("a.zip", Path("upstream/a.zip")), ("b.zip", outside)):
        with atomic_path(Path("data/assets") / name) as link:
            link_to(place, link)
    moved = checkout.rename(tmp_path / "renamed")
    assert (moved / "data/assets/a.zip").read_text() == "inside"
    assert (moved / "data/assets/b.zip").read_text() == "outside"
