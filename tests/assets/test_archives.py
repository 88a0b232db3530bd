"""Unpacking: round trips, and archives that want to harm."""

import gzip
import io
import json
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from possam.assets.archives import check_archive, is_unpacked, unpack
from possam.params.data import FilesParams, PartParams
from possam.runtime.errors import InputError

FILES = {"set/a.txt": b"alpha" * 1000, "set/sub/b.bin": bytes(range(256)) * 40, "set/empty": b""}


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES) -> Path:
    mode = {".tar": "w", ".gz": "w:gz", ".xz": "w:xz"}[path.suffix]
    with tarfile.open(path, mode) as bundle:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            bundle.addfile(member, io.BytesIO(content))
    return path


MAKERS: dict[str, Callable[..., Path]] = {
    "one.zip": make_zip, "one.tar": make_tar, "one.tar.gz": make_tar, "one.tar.xz": make_tar,
}  # fmt: skip


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and p.name != "unpacked.json"
    }


@pytest.mark.parametrize("name", MAKERS)
def test_unpacks_what_was_packed(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    record = unpack(archive, tmp_path / "out")
    assert content(tmp_path / "out") == FILES
    assert record["files"] == 3
    assert record["bytes"] == sum(map(len, FILES.values()))
    assert json.loads((tmp_path / "out" / "unpacked.json").read_text()) == record


def test_the_content_hash_is_that_of_the_files_not_of_the_packing(tmp_path: Path) -> None:
    hashes = {
        unpack(make(tmp_path / name), tmp_path / "out")["content"] for name, make in MAKERS.items()
    }
    assert len(hashes) == 1
    other = make_zip(tmp_path / "other.zip", FILES | {"set/a.txt": b"beta"})
    assert unpack(other, tmp_path / "out")["content"] not in hashes


def test_zip_files_inside_are_unpacked_beside_themselves(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"maps/1.png": b"png", "__MACOSX/maps/._1.png": b"x"})
    outer = make_zip(
        tmp_path / "outer.zip", {"ann/maps.json": b"{}", "ann/maps.zip": inner.read_bytes()}
    )
    record = unpack(outer, tmp_path / "out")
    assert content(tmp_path / "out") == {"ann/maps.json": b"{}", "ann/maps/1.png": b"png"}
    assert record["files"] == 2


def test_every_entry_is_unpacked_whatever_number_the_end_record_states(tmp_path: Path) -> None:
    """As macOS packs 65,539 entries: the count is cut to 16 bits, and no further record has it."""
    names = [f"__MACOSX/maps/._{number}.png" for number in range(1 << 16)]
    names += [f"maps/{number}.png" for number in range(3)]
    local, central = bytearray(), bytearray()
    for name in map(str.encode, names):
        entry = struct.pack("<5H3L2H", 20, 0, 0, 0, 33, 0, 0, 0, len(name), 0)
        directory = struct.pack("<3H2L", 0, 0, 0, 0, len(local))
        central += b"PK\x01\x02" + struct.pack("<H", 20) + entry + directory + name
        local += b"PK\x03\x04" + entry + name
    end = struct.pack("<4H2LH", 0, 0, 3, 3, len(central), len(local), 0)
    inner = bytes(local + central) + b"PK\x05\x06" + end
    outer = make_zip(tmp_path / "outer.zip", {"ann/maps.zip": inner})
    record = unpack(outer, tmp_path / "out")
    assert content(tmp_path / "out") == {f"ann/maps/{number}.png": b"" for number in range(3)}
    assert record["warts"] == {"maps.zip": "its end record counts 3 of 65539 entries"}
    assert unpack(make_zip(tmp_path / "one.zip"), tmp_path / "two")["warts"] == {}


def test_an_older_folder_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old.txt").write_text("old")
    unpack(make_zip(tmp_path / "one.zip"), tmp_path / "out")
    assert content(tmp_path / "out") == FILES


def _tar_with(member: tarfile.TarInfo) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "bad.tar"
        with tarfile.open(path, "w") as bundle:
            good = tarfile.TarInfo("good.txt")
            good.size = 4
            bundle.addfile(good, io.BytesIO(b"good"))
            bundle.addfile(member)
        return path

    return make


def _special(name: str, kind: bytes, target: str = "") -> Callable[[Path], Path]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return _tar_with(member)


def _zip_link(folder: Path) -> Path:
    path = folder / "bad.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        bundle.writestr(info, "/etc/passwd")
    return path


def _zip(name: str) -> Callable[[Path], Path]:
    return lambda folder: make_zip(folder / "bad.zip", {"good.txt": b"good", name: b"evil"})


def _tar(name: str) -> Callable[[Path], Path]:
    return lambda folder: make_tar(folder / "bad.tar", {"good.txt": b"good", name: b"evil"})


def _nested(folder: Path) -> Path:
    inner = make_zip(folder / "inner.zip", {"../../evil": b"evil"})
    return make_zip(folder / "bad.zip", {"a/inner.zip": inner.read_bytes()})


def _twice(folder: Path) -> Path:
    path = folder / "bad.tar"
    with tarfile.open(path, "w") as bundle:
        for _ in range(2):
            bundle.addfile(tarfile.TarInfo("same.txt"))
    return path


def _encrypted(folder: Path) -> Path:
    """A zip whose member says that it is encrypted (bit 0 of its flags, in both places)."""
    path = make_zip(folder / "bad.zip", {"secret": b"x"})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    return path


def _zip_twice(folder: Path) -> Path:
    path = folder / "bad.zip"
    with zipfile.ZipFile(path, "w") as bundle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for content in ("one", "two"):
            bundle.writestr("same.txt", content)
    return path


def _lying_size(folder: Path) -> Path:
    """A zip whose directory says that a member is smaller than it is."""
    path = make_zip(folder / "bad.zip", {"small": bytes(1_000_000)})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        start = data.index(signature) + offset
        data[start : start + 4] = (10).to_bytes(4, "little")
    path.write_bytes(data)
    return path


def _then(name: str, kind: bytes, target: str) -> Callable[[Path], Path]:
    """A link first, then a file that would be written through it."""

    def make(folder: Path) -> Path:
        path = folder / "bad.tar"
        with tarfile.open(path, "w") as bundle:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            bundle.addfile(link)
            through = tarfile.TarInfo(f"{name}/evil")
            through.size = 4
            bundle.addfile(through, io.BytesIO(b"evil"))
        return path

    return make


def _tar_in_order(*names: str) -> Callable[[Path], Path]:
    return lambda folder: make_tar(folder / "bad.tar", dict.fromkeys(names, b"x"))


HOSTILE = {
    "zip parent": (_zip("../evil"), "outside"),
    "zip deep parent": (_zip("a/../../evil"), "outside"),
    "zip absolute": (_zip("/evil"), "outside"),
    "zip backslash": (_zip("..\\evil"), "outside"),
    "zip link": (_zip_link, "link"),
    "zip in zip": (_nested, "outside"),
    "tar parent": (_tar("../evil"), "outside"),
    "tar absolute": (_tar("/evil"), "outside"),
    "tar symbolic link": (_special("link", tarfile.SYMTYPE, "/etc/passwd"), "link"),
    "tar link to its parent": (_special("link", tarfile.SYMTYPE, ".."), "link"),
    "tar hard link": (_special("link", tarfile.LNKTYPE, "../../etc/passwd"), "link"),
    "tar hard link inside": (_special("link", tarfile.LNKTYPE, "good.txt"), "link"),
    "tar writes through a link": (_then("link", tarfile.SYMTYPE, "/tmp"), "link"),
    "tar block device": (_special("disk", tarfile.BLKTYPE), "device"),
    "tar sparse pretends": (_special("odd", b"Z"), "device"),
    "tar of a file and of a file in it": (_tar_in_order("a", "a/b"), "cannot be unpacked"),
    "tar control character": (_tar("a\nb"), "cannot be shown"),
    "zip control character": (_zip("a\x1b[2Jb"), "cannot be shown"),
    "zip encrypted": (_encrypted, "encrypted"),
    "zip member twice": (_zip_twice, "twice"),
    "zip lies about a size": (_lying_size, "not a complete zip|cannot be unpacked"),
    "tar device": (_special("dev", tarfile.CHRTYPE), "device"),
    "tar pipe": (_special("pipe", tarfile.FIFOTYPE), "device"),
    "member twice": (_twice, "twice"),
    "record name": (_zip("unpacked.json"), "record"),
    "only folders": (lambda f: make_zip(f / "bad.zip", {}), "no file"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_leave_nothing(tmp_path: Path, case: str) -> None:
    make, fault = HOSTILE[case]
    source = tmp_path / "source"
    source.mkdir()
    archive = make(source)
    before = sorted(source.iterdir())
    with pytest.raises(InputError, match=fault) as error:
        unpack(archive, tmp_path / "deep" / "out")
    assert archive.suffix in str(error.value)
    assert list((tmp_path / "deep").iterdir()) == []
    assert sorted(source.iterdir()) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "source"]


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("share", [0.2, 0.6, 0.85])
def test_truncated_archives_are_refused(tmp_path: Path, name: str, share: float) -> None:
    noise = {f"{i}.bin": hash_bytes(i) for i in range(20)}
    archive = MAKERS[name](tmp_path / name, noise)
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * share)])
    with pytest.raises(InputError, match="download it again"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def hash_bytes(seed: int) -> bytes:
    import numpy as np

    return np.random.default_rng(seed).bytes(3000)


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "one.tar")
    with tarfile.open(archive) as bundle:
        second = bundle.getmembers()[1].offset
    archive.write_bytes(archive.read_bytes()[:second])
    for read in (check_archive, lambda path: unpack(path, tmp_path / "out")):
        with pytest.raises(InputError, match="end-of-archive"):
            read(archive)


@pytest.mark.parametrize("name", ["one.zip", "one.tar.gz", "one.tar.xz"])
def test_flipped_bytes_are_found(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name, {"a.bin": hash_bytes(1), "b.bin": hash_bytes(2)})
    damaged = bytearray(archive.read_bytes())
    damaged[len(damaged) // 3] ^= 0xFF
    archive.write_bytes(damaged)
    with pytest.raises(InputError, match="download it again"):
        unpack(archive, tmp_path / "out")


def test_what_is_no_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "page.zip"
    path.write_text("<html>not found</html>" * 50)
    with pytest.raises(InputError, match="not a complete zip or tar"):
        unpack(path, tmp_path / "out")
    with pytest.raises(InputError, match="download it first"):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_bombs_are_refused_before_they_unfold(tmp_path: Path) -> None:
    zeros = bytes(300_000_000)
    archive = make_zip(tmp_path / "bomb.zip", {"zeros": zeros})
    assert archive.stat().st_size < 1_000_000
    with pytest.raises(InputError, match="times its own size"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_compressed_tar_that_never_ends_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / "bomb.tar.gz"
    small = make_tar(tmp_path / "one.tar").read_bytes()
    with gzip.open(archive, "wb", compresslevel=1) as stream:
        stream.write(small)
        for _ in range(300):
            stream.write(bytes(1_000_000))
    with pytest.raises(InputError, match="times its own size"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("name", MAKERS)
def test_more_members_than_the_limit_are_refused_before_one_is_written(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = MAKERS[name](tmp_path / name, {f"{number}": b"" for number in range(51)})
    assert unpack(archive, tmp_path / "out", max_files=51)["files"] == 51
    monkeypatch.setattr("possam.assets.archives._write", lambda *a: pytest.fail("written"))
    with pytest.raises(InputError, match="more than 50 members"):
        unpack(archive, tmp_path / "other", max_files=50)
    assert not (tmp_path / "other").exists()


def test_folders_count_as_members(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "one.zip", {f"{number}/": b"" for number in range(9)})
    with pytest.raises(InputError, match="more than 8 members"):
        unpack(archive, tmp_path / "out", max_files=8)


def test_a_bomb_in_an_archive_in_the_archive_is_refused(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"zeros": bytes(300_000_000)})
    archive = make_zip(tmp_path / "outer.zip", {"inner.zip": inner.read_bytes()})
    with pytest.raises(InputError, match="times its own size"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_written_before_all_members_are_checked(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = MAKERS[name](tmp_path / name, {"good": b"good", "../evil": b"evil"})
    monkeypatch.setattr("possam.assets.archives._write", lambda *a: pytest.fail("written"))
    for read in (check_archive, lambda path: unpack(path, tmp_path / "out")):
        with pytest.raises(InputError, match="outside"):
            read(archive)


@pytest.mark.parametrize("name", MAKERS)
def test_what_is_unpacked_is_known(tmp_path: Path, name: str) -> None:
    archive, out = MAKERS[name](tmp_path / name), tmp_path / "out"
    check_archive(archive)
    assert not is_unpacked(out, "a")
    assert unpack(archive, out, source_sha256="a")["sha256"] == "a"
    assert is_unpacked(out, "a") and not is_unpacked(out, "b")
    (out / "set" / "a.txt").write_bytes(b"alpha")
    assert not is_unpacked(out, "a")
    unpack(archive, out, source_sha256="a")
    (out / "set" / "empty").unlink()
    assert not is_unpacked(out, "a")
    (out / "set" / "empty").symlink_to("nowhere")
    assert not is_unpacked(out, "a")


def part(path: str, *suffixes: str) -> PartParams:
    files = tuple(FilesParams(suffix=suffix, exactly="coco.val") for suffix in suffixes)
    return PartParams(path=path, places=(path,), files=files)


@pytest.mark.parametrize("name", MAKERS)
def test_only_what_is_needed_is_unpacked(tmp_path: Path, name: str) -> None:
    more = {"set/sub/deep/c.BIN": b"c", "set/sub/b.txt": b"b", "set/subs/d.bin": b"d"}
    archive, out = MAKERS[name](tmp_path / name, FILES | more), tmp_path / "out"
    parts = (part("set/sub", ".bin"), part("set/empty"))
    record = unpack(archive, out, source_sha256="a", parts=parts)
    kept = {"set/sub/b.bin": FILES["set/sub/b.bin"], "set/sub/deep/c.BIN": b"c", "set/empty": b""}
    assert content(out) == kept
    assert (record["files"], record["bytes"]) == (3, len(FILES["set/sub/b.bin"]) + 1)
    assert record["parts"] == [["set/sub", ".bin"], ["set/empty"]]
    assert is_unpacked(out, "a", parts)
    assert not is_unpacked(out, "a", parts[:1]), "which files are needed is part of the record"
    assert not is_unpacked(out, "a"), "everything is needed"
    unpack(archive, out, source_sha256="a")
    assert is_unpacked(out, "a", parts), "everything is there"
    with pytest.raises(InputError, match=r"nothing of elsewhere, b.txt, .* publisher's archive"):
        unpack(archive, out, parts=(part("elsewhere", ".bin"), part("b.txt")))


def test_what_is_needed_of_zip_files_inside_is_told_by_the_whole_path(tmp_path: Path) -> None:
    inner = make_zip(tmp_path / "inner.zip", {"maps/1.png": b"png", "maps/1.txt": b"text"})
    files = dict.fromkeys(("ann/maps.zip", "other/maps.zip"), inner.read_bytes())
    outer = make_zip(tmp_path / "outer.zip", files | {"ann/maps.json": b"{}"})
    unpack(outer, tmp_path / "out", parts=(part("ann/maps", ".png"),))
    assert content(tmp_path / "out") == {"ann/maps/1.png": b"png"}


@pytest.mark.parametrize("name", MAKERS)
def test_room_is_needed_only_for_what_is_unpacked(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = MAKERS[name](tmp_path / name)
    usage = type("Usage", (), {"free": 15_000})
    monkeypatch.setattr("possam.assets.archives.shutil.disk_usage", lambda path: usage)
    check_archive(archive)
    unpack(archive, tmp_path / "out", parts=(part("set/a.txt"),))
    with pytest.raises(InputError, match="make room"):
        unpack(archive, tmp_path / "out", parts=(part("set", ".txt", ".bin"),))


@pytest.mark.parametrize("name", MAKERS)
def test_files_that_are_not_needed_are_checked_too(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name, FILES | {"../evil": b"evil"})
    with pytest.raises(InputError, match="outside"):
        unpack(archive, tmp_path / "out", parts=(part("set/a.txt"),))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", MAKERS)
def test_the_limit_in_bytes_holds(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    with pytest.raises(InputError, match="limit is 10000 bytes"):
        unpack(archive, tmp_path / "out", max_bytes=10_000)


def test_a_full_disk_is_reported_before_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_zip(tmp_path / "one.zip")
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("possam.assets.archives.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="make room"):
        unpack(archive, tmp_path / "out")
