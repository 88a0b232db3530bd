"""Fetching over an unreliable server, and checks before a file gets its name."""

import contextlib
import errno
import hashlib
import http.server
import json
import multiprocessing
import re
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from possam.assets.fetch import fetch
from possam.params.assets import AssetParams
from possam.params.reading import validate
from possam.params.yaml import read_yaml
from possam.runtime.errors import ChecksumError, InputError

CONTENT = bytes(range(256)) * 20_000  # 5 MB: several chunks
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<html>Please sign in.</html>"
FAULTS = {
    "cut", "corrupt", "ignore-range", "404", "416", "429", "500", "503", "drop", "page",
    "truncated", "chunked-cut", "no-length-cut", "wrong-start", "no-content-range",
}  # fmt: skip
HARMLESS = {"ignore-range", "wrong-start", "no-content-range"}
"""Faults of only the answer to a continued download."""


class Server(http.server.ThreadingHTTPServer):
    """Serves CONTENT; ``plan`` holds what goes wrong in the next requests, one word each."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.plan: list[str] = []
        self.always = ""
        self.requests: list[str | None] = []
        self.credentials: list[str | None] = []
        self.etag = '"one"'

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that hang up early are part of the tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *arguments: object) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        self.server.credentials.append(self.headers.get("Authorization"))
        self.server.requests.append(self.headers.get("Range"))
        word = self.server.plan.pop(0) if self.server.plan else self.server.always
        if word == "drop":
            self.close_connection = True
            return
        if word.isdigit():
            self.send_error(int(word))
            return
        content = PAGE if word == "page" else self.server.content
        if word == "truncated":  # and says so: the file itself is cut on the server
            content = content[: len(content) // 2]
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, self.server.etag)
        if wanted and same and word != "ignore-range":
            start = int(wanted[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            if word == "wrong-start":
                start -= 1000
            if word != "no-content-range":
                span = f"bytes {start}-{len(content) - 1}/{len(content)}"
                self.send_header("Content-Range", span)
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("ETag", self.server.etag)
        if word == "chunked-cut":
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            half = body[: len(body) // 2]
            self.wfile.write(f"{len(half):x}\r\n".encode() + half + b"\r\n")
            return
        if word != "no-length-cut":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if word == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if word in ("cut", "no-length-cut"):
            body = body[: len(body) // 2]
        if word == "stall":
            self.wfile.write(body[:1000])
            self.wfile.flush()
            threading.Event().wait(2)
            return
        self.wfile.write(body)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server that runs."""
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


def asset(
    *urls: str, checksum: str | None = f"sha256:{SHA256}", size: int | None = None
) -> AssetParams:
    return AssetParams(
        file="file.bin", urls=urls, checksum=checksum, size=size, licence="test", notes="Register."
    )


def get(params: AssetParams, folder: Path, **options: object) -> Path:
    settings = {
        "name": "one", "directory": folder, "world_manifest": None, "base": folder,
        "retries": 3, "backoff": 0.0, "timeout": 1.0,
    }  # fmt: skip
    return fetch(params, **(settings | options))  # type: ignore[arg-type]


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if ".part" in p.name or ".tmp" in p.name)


def test_downloads_checks_and_records(server: Server, tmp_path: Path) -> None:
    path = get(asset(server.url, size=len(CONTENT)), tmp_path)
    assert path == tmp_path / "file.bin"
    assert path.read_bytes() == CONTENT
    assert json.loads((tmp_path / "one.record.json").read_text()) == {
        "asset": "one",
        "file": "file.bin",
        "bytes": len(CONTENT),
        "sha256": SHA256,
        "source": server.url,
        "checksum": f"sha256:{SHA256}",
        "pinned": False,
        "licence": "test",
    }
    assert leftovers(tmp_path) == []


def test_a_password_reaches_the_server_and_nothing_else(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = server.url.replace("http://", "http://user:p%40ss@") + "?token=geheim&raw=1"
    server.plan = ["cut", "500", "500", "500"]
    with pytest.raises(InputError, match="goes on at byte") as caught:
        get(asset(secret), tmp_path)
    # A renewed token is no other file: the download goes on.
    assert get(asset(secret.replace("geheim", "erneut")), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == f"bytes={len(CONTENT) // 2}-"
    assert set(server.credentials) == {"Basic dXNlcjpwQHNz"}
    written = [str(caught.value), *capsys.readouterr()]
    written += [path.read_text("latin-1") for path in tmp_path.iterdir() if path.suffix == ".json"]
    for text in written:
        assert not any(word in text for word in ("p%40ss", "p@ss", "geheim", "erneut"))
    shown = server.url.replace("http://", "http://***@") + "?token=***&raw=1"
    assert json.loads((tmp_path / "one.record.json").read_text())["source"] == shown


def test_a_disk_that_fills_up_and_a_folder_without_permission(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr("possam.assets.download._receive", refuse)
    with pytest.raises(InputError, match=r"file\.bin\.part: your disk quota is used up; "):
        get(asset(server.url), tmp_path)

    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "x.part")

    monkeypatch.setattr("possam.assets.download._receive", deny)
    with pytest.raises(PermissionError):
        get(asset(server.url), tmp_path)
    assert len(server.requests) == 2, "no attempt was repeated"


def test_a_complete_file_is_neither_fetched_nor_hashed_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    get(asset(server.url), tmp_path)
    record = (tmp_path / "one.record.json").read_bytes()
    monkeypatch.setattr("possam.assets.fetch._hash", lambda *a, **k: pytest.fail("hashed again"))
    get(asset(server.url), tmp_path)
    assert len(server.requests) == 1
    assert (tmp_path / "one.record.json").read_bytes() == record


def test_a_changed_file_is_noticed_and_fetched_again(server: Server, tmp_path: Path) -> None:
    path = get(asset(server.url), tmp_path)
    path.write_bytes(CONTENT[:-1] + b"x")
    assert get(asset(server.url), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_cut_connection_is_continued_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.plan = ["cut", "cut", ""]
    assert get(asset(server.url), tmp_path).read_bytes() == CONTENT
    half, quarter = len(CONTENT) // 2, len(CONTENT) - len(CONTENT) // 4
    assert server.requests == [None, f"bytes={half}-", f"bytes={quarter}-"]


def test_a_later_run_continues_an_earlier_one(server: Server, tmp_path: Path) -> None:
    server.plan = ["cut", "500", "500", "500"]
    with pytest.raises(InputError, match=f"goes on at byte {len(CONTENT) // 2}"):
        get(asset(server.url), tmp_path)
    assert not (tmp_path / "file.bin").exists()
    assert get(asset(server.url), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == f"bytes={len(CONTENT) // 2}-"


def test_a_server_that_ignores_range_starts_again(server: Server, tmp_path: Path) -> None:
    server.plan = ["cut", "ignore-range"]
    assert get(asset(server.url), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_a_file_that_changed_upstream_meanwhile_is_not_mixed(
    server: Server, tmp_path: Path
) -> None:
    server.plan = ["cut", "500", "500", "500"]
    with pytest.raises(InputError):
        get(asset(server.url, checksum=None), tmp_path)
    server.content, server.etag = CONTENT[::-1], '"two"'
    assert get(asset(server.url, checksum=None), tmp_path).read_bytes() == CONTENT[::-1]


def test_a_partial_file_longer_than_the_servers_is_dropped(server: Server, tmp_path: Path) -> None:
    server.plan = ["cut", "500", "500", "500"]
    with pytest.raises(InputError):
        get(asset(server.url, checksum=None), tmp_path)
    server.content = b"short"
    assert get(asset(server.url, checksum=None), tmp_path).read_bytes() == b"short"


def attempt(params: AssetParams, folder: Path) -> bool:
    """One call: a good file and its record, or one clear error and neither."""
    record = folder / "one.record.json"
    try:
        path = get(params, folder)
    except InputError as error:
        assert re.search(r"http://127|file\.bin", str(error)), error
        assert not (folder / "file.bin").exists() and not record.exists()
        return False
    assert path.read_bytes() == CONTENT
    assert json.loads(record.read_text())["sha256"] == SHA256
    assert leftovers(folder) == []
    return True


@pytest.mark.parametrize("size", [None, len(CONTENT)])
@pytest.mark.parametrize("word", sorted(FAULTS))
def test_every_fault_ends_in_a_good_file_or_a_clear_error(
    server: Server, tmp_path: Path, word: str, size: int | None
) -> None:
    params = asset(server.url, size=size)
    server.always = word
    done = attempt(params, tmp_path / "always")
    assert done == (word in HARMLESS)
    server.always = ""
    assert attempt(params, tmp_path / "always")
    server.plan = ["cut", word]  # in a download that goes on
    attempt(params, tmp_path / "once")
    server.plan = []
    assert attempt(params, tmp_path / "once")


@hypothesis.given(
    st.lists(st.sampled_from(sorted(FAULTS)), max_size=8), st.sampled_from([None, len(CONTENT)])
)
@hypothesis.settings(max_examples=25)
def test_any_run_of_faults_ends_in_a_good_file(words: list[str], size: int | None) -> None:
    with serving() as server, tempfile.TemporaryDirectory() as folder:
        params = asset(server.url, size=size)
        server.plan = list(words)
        while not attempt(params, Path(folder)):
            pass
        assert attempt(params, Path(folder))


def test_a_cut_archive_without_a_checksum_is_never_pinned(server: Server, tmp_path: Path) -> None:
    """Without length and checksum only the archive itself can tell that its end is missing."""
    with zipfile.ZipFile(tmp_path / "good.zip", "w") as bundle:
        bundle.writestr("a", CONTENT)
    server.content = (tmp_path / "good.zip").read_bytes()
    params = asset(server.url, checksum=None).model_copy(update={"unpack": True})
    for word in ("no-length-cut", "truncated", "page"):
        server.plan = [word]
        with pytest.raises(InputError, match=r"not a complete zip or tar.*download was removed"):
            get(params, tmp_path / "assets")
        assert not (tmp_path / "assets" / "pins.json").exists()
        assert leftovers(tmp_path / "assets") == []
    assert get(params, tmp_path / "assets").read_bytes() == server.content
    assert "file.bin" in json.loads((tmp_path / "assets" / "pins.json").read_text())


def test_a_cut_archive_put_in_place_by_hand_is_not_pinned(tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"PK\x03\x04 no archive")
    params = asset(checksum=None).model_copy(update={"unpack": True})
    with pytest.raises(InputError, match=r"file\.bin: not a complete zip"):
        get(params, tmp_path)
    assert not (tmp_path / "pins.json").exists()


def test_a_full_disk_is_reported_before_the_transfer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": len(CONTENT) - 1})
    monkeypatch.setattr("possam.assets.download.shutil.disk_usage", lambda path: usage)
    with pytest.raises(InputError, match=f"{len(CONTENT)} bytes are needed .* make room"):
        get(asset(server.url), tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("word", ["500", "503", "429", "stall"])
def test_passing_faults_are_retried(server: Server, tmp_path: Path, word: str) -> None:
    server.plan = [word]
    assert get(asset(server.url), tmp_path, timeout=0.3).read_bytes() == CONTENT
    assert len(server.requests) == 2


def test_pauses_grow_and_attempts_end(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("possam.assets.download.time.sleep", pauses.append)
    server.plan = ["500"] * 9
    with pytest.raises(InputError, match="after 5 attempts"):
        get(asset(server.url), tmp_path, retries=5, backoff=1.0)
    assert pauses == [1.0, 2.0, 4.0, 8.0]


def test_not_found_is_not_retried_and_the_next_source_is_tried(
    server: Server, tmp_path: Path
) -> None:
    server.plan = ["404"]
    with pytest.raises(InputError, match="404"):
        get(asset(server.url), tmp_path)
    assert len(server.requests) == 1
    server.plan = ["404"]
    path = get(asset(server.url, server.url + "?mirror"), tmp_path)
    assert path.read_bytes() == CONTENT
    assert json.loads((tmp_path / "one.record.json").read_text())["source"].endswith("?mirror")


def test_corrupt_bytes_never_get_the_name(server: Server, tmp_path: Path) -> None:
    server.plan = ["corrupt"]
    with pytest.raises(ChecksumError) as error:
        get(asset(server.url), tmp_path)
    found = hashlib.sha256(CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])).hexdigest()
    for part in ("file.bin", SHA256, found, "assets.yaml"):
        assert part in str(error.value)
    assert not (tmp_path / "file.bin").exists()
    assert not (tmp_path / "one.record.json").exists()
    assert leftovers(tmp_path) == []


def test_a_wrong_size_is_refused_before_the_transfer(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ChecksumError, match=f"{len(CONTENT)} bytes, 7 are expected"):
        get(asset(server.url, size=7), tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
def test_every_algorithm_is_checked(tmp_path: Path, algorithm: str) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    right = hashlib.new(algorithm, CONTENT).hexdigest()
    wrong = ("0" if right[0] != "0" else "1") + right[1:]
    folder = tmp_path / "assets"
    with pytest.raises(ChecksumError):
        get(asset("file:source", checksum=f"{algorithm}:{wrong}"), folder, base=tmp_path)
    get(asset("file:source", checksum=f"{algorithm}:{right}"), folder, base=tmp_path)
    record = json.loads((folder / "one.record.json").read_text())
    assert (record["checksum"], record["sha256"]) == (f"{algorithm}:{right}", SHA256)


def test_no_published_checksum_is_pinned_on_first_use_and_held_to(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = get(asset(server.url, checksum=None), tmp_path)
    assert f"pinned sha256:{SHA256}" in capsys.readouterr().err
    pins = json.loads((tmp_path / "pins.json").read_text())
    assert pins == {"file.bin": {"sha256": SHA256, "bytes": len(CONTENT)}}
    record = (tmp_path / "one.record.json").read_bytes()
    assert json.loads(record)["pinned"] is True
    path.unlink()
    server.content = CONTENT[::-1]
    with pytest.raises(ChecksumError, match=r"pins\.json"):
        get(asset(server.url, checksum=None), tmp_path)
    server.content = CONTENT
    get(asset(server.url, checksum=None), tmp_path)
    assert (tmp_path / "one.record.json").read_bytes() == record


@pytest.mark.parametrize("form", ["file:source", "file:{base}/source", "file://{base}/source"])
def test_local_sources(tmp_path: Path, form: str) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    url = form.format(base=tmp_path)
    path = get(asset(url), tmp_path / "assets", base=tmp_path)
    assert path.read_bytes() == CONTENT


def test_the_worlds_files_are_checked_against_its_manifest(tmp_path: Path) -> None:
    world = tmp_path / "world"
    world.mkdir()
    (world / "file.bin").write_bytes(CONTENT)
    manifest = world / "manifest.json"
    listed = {"files": {"file.bin": {"sha256": SHA256, "bytes": len(CONTENT)}}}
    manifest.write_text(json.dumps(listed))
    params = asset("file:{world}/file.bin", checksum="manifest:{world}/manifest.json")
    folder = tmp_path / "assets"
    get(params, folder, world_manifest=manifest)
    record = json.loads((folder / "one.record.json").read_text())
    assert record["source"] == "file:{world}/file.bin"  # no machine's path
    # The world was made again, with other content: the copy follows.
    (world / "file.bin").write_bytes(b"new")
    listed["files"]["file.bin"] = {"sha256": hashlib.sha256(b"new").hexdigest(), "bytes": 3}
    manifest.write_text(json.dumps(listed))
    assert get(params, folder, world_manifest=manifest).read_bytes() == b"new"
    # Damaged after the manifest was written.
    (folder / "file.bin").unlink()
    (world / "file.bin").write_bytes(b"bad")
    with pytest.raises(ChecksumError, match="manifest"):
        get(params, folder, world_manifest=manifest)
    manifest.write_text('{"files": {}}')
    with pytest.raises(InputError, match=r"files.file.bin.sha256"):
        get(params, folder, world_manifest=manifest)
    with pytest.raises(InputError, match="procedural world"):
        get(params, folder)


def test_a_file_behind_registration_is_put_in_place_by_the_user(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Register.*one\.urls"):
        get(asset(checksum=None), tmp_path)
    (tmp_path / "file.bin").write_bytes(CONTENT)
    get(asset(checksum=None), tmp_path)
    record = json.loads((tmp_path / "one.record.json").read_text())
    assert record["source"] == "put in place by hand"
    (tmp_path / "file.bin").write_bytes(b"other")
    with pytest.raises(ChecksumError, match="put the right file there"):
        get(asset(checksum=None), tmp_path)


def test_a_missing_local_source_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere") as error:
        get(asset("file:nowhere"), tmp_path)
    assert not isinstance(error.value, ChecksumError)


def _fetch_in_child(url: str, folder: str) -> None:
    get(asset(url), Path(folder), timeout=30.0)


def test_two_downloaders_fetch_once(server: Server, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    children = [
        context.Process(target=_fetch_in_child, args=(server.url, str(tmp_path))) for _ in range(3)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]
    assert len(server.requests) == 1
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


PARAMS = Path(__file__).parents[2] / "params" / "assets.yaml"


def declared() -> dict[str, AssetParams]:
    return {
        name: validate(AssetParams, data, source=name) for name, data in read_yaml(PARAMS).items()
    }


def test_declared_assets_have_what_the_paper_needs() -> None:
    assets = declared()
    unpinned = {name for name, one in assets.items() if one.checksum is None}
    assert unpinned == {"ade20k_instances", "ade20k_full", "pascal_context_459"}
    assert {name for name, one in assets.items() if not one.urls} == {"ade20k_full"}
    for name, one in assets.items():
        if not name.startswith("synthetic_"):
            assert (
                f"synthetic_{name}" not in assets
                or assets[f"synthetic_{name}"].unpack == one.unpack
            )
        else:
            assert one.checksum is not None and one.checksum.startswith("manifest:")


def test_files_of_the_repository_match_their_checksums(tmp_path: Path) -> None:
    params = declared()["ade20k_instance_classes"]
    get(params, tmp_path, base=PARAMS.parents[1])


def test_declared_class_names_match_the_shared_copies(shared: Path) -> None:
    checked = 0
    for one in declared().values():
        copy = shared / "upstream" / "openseg_labels" / one.file
        if copy.exists():
            assert one.checksum == f"sha256:{hashlib.sha256(copy.read_bytes()).hexdigest()}"
            assert one.size == copy.stat().st_size
            checked += 1
    assert checked == 6


@pytest.mark.parametrize("file", ["../x", "a/b", "/etc/x", ".hidden"])
def test_an_asset_cannot_be_named_outside_its_folder(file: str) -> None:
    data = {"file": file, "urls": [], "licence": "test"}
    with pytest.raises(InputError, match="file"):
        validate(AssetParams, data, source="assets.yaml")
