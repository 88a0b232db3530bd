"""Every reader tells apart what is missing, a folder, not permitted, and damaged."""

import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from possam.arguments import load_project
from possam.assets.archives import check_archive, is_unpacked, unpack
from possam.assets.fetch import _copy
from possam.datasets.class_names import read_class_index, read_class_table
from possam.datasets.pixels import read_image
from possam.datasets.upstream.pascal_context_459 import read_label_map
from possam.evaluation.reader import read_png
from possam.evaluation.statistics import _read_table
from possam.launch.source import freeze
from possam.model.encoders.clip import load_clip
from possam.model.encoders.state_dicts import read_state_dict
from possam.params.published import _read_lines
from possam.params.reading import read_yaml
from possam.pictures.photographs import read_photograph
from possam.pictures.text_cache import _read as read_text_embeddings
from possam.reporting.figures.curves import read_curve
from possam.runtime.errors import InputError, NotPermittedError
from possam.runtime.files import atomic_directory, atomic_path, read_json, write_json
from possam.training.checkpoint import newest_intact, read_metadata, save_checkpoint
from possam.training.feature_cache import _open_map
from tests.support.users import shared_folder, without_rights

READERS: dict[str, Callable[[Path], object]] = {
    "a.json": read_json,
    "a.yaml": read_yaml,
    "weights.safetensors": read_metadata,
    "sam.pth": lambda path: read_state_dict(path, kind="SAM"),
    "sam.safetensors": lambda path: read_state_dict(path, kind="SAM"),
    "clip.json": lambda path: load_clip(config=path, checkpoint=None, random_init=True),
    "text.safetensors": lambda path: read_text_embeddings(path, 1),
    "map_0.npy": lambda path: _open_map(path, [1, 1]),
    "images.parquet": lambda path: _read_table(path, {"id"}),
    "published.csv": lambda path: _read_lines(path, ["row"]),
    "metrics.jsonl": lambda path: read_curve(path, run="a", seed=0),
    "names.txt": read_class_index,
    "names.csv": lambda path: read_class_table(path, ("id", "name")),
    "photo.jpg": read_image,
    "own.jpg": read_photograph,
    "prediction.png": read_png,
    "labels.mat": lambda path: read_label_map(path, 459, (1, 1), path),
    "a.zip": lambda path: unpack(path, path.parent / "unpacked"),
    "a.tar": check_archive,
}
WRONG_REMEDY = re.compile(r"again|delete|remove|download|fetch|truncated|damaged|anew", re.I)


@pytest.fixture
def shared() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


@pytest.mark.parametrize("name", READERS)
def test_four_reasons_four_messages(name: str, shared: Path) -> None:
    read, path = READERS[name], shared / name
    with pytest.raises(InputError, match=rf"{re.escape(name)}: no such file"):
        read(path)
    path.symlink_to(shared / "unmounted" / name)
    with pytest.raises(InputError, match=rf"{re.escape(name)}: a link to .*, where nothing is"):
        read(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(InputError, match=rf"{re.escape(name)}: a folder"):
        read(path)
    path.rmdir()
    path.write_bytes(b"\xff\xfe not what it should be\n")
    with pytest.raises(InputError, match=re.escape(name)) as damaged:
        read(path)
    assert not isinstance(damaged.value, NotPermittedError)
    path.chmod(0)
    with without_rights(), pytest.raises(NotPermittedError) as caught:
        read(path)
    assert re.match(rf"{re.escape(str(path))}: user \w+ may not read it .*chmod", str(caught.value))
    assert not WRONG_REMEDY.search(str(caught.value).replace(str(path), ""))


def test_the_folder_in_the_way_is_named(shared: Path) -> None:
    (shared / "theirs/deep").mkdir(parents=True)
    (shared / "theirs/deep/a.json").write_text("{}")
    (shared / "theirs").chmod(0)
    with without_rights(), pytest.raises(NotPermittedError, match=r"theirs: d-{9}, owner \w+"):
        read_json(shared / "theirs/deep/a.json")
    (shared / "theirs").chmod(0o755)


def test_an_unpacked_archive_that_may_not_be_read_is_not_unpacked_again(shared: Path) -> None:
    with zipfile.ZipFile(shared / "a.zip", "w") as bundle:
        bundle.writestr("deep/a.txt", "a")
    unpack(shared / "a.zip", shared / "unpacked", source_sha256="a")
    assert is_unpacked(shared / "unpacked", "a")
    (shared / "unpacked/deep").chmod(0)
    with without_rights(), pytest.raises(NotPermittedError, match=r"unpacked/deep: .* may not"):
        is_unpacked(shared / "unpacked", "a")
    (shared / "unpacked/deep").chmod(0o755)


def test_a_source_that_may_not_be_read_leaves_nothing_behind(shared: Path) -> None:
    source, partial = shared / "a.zip", shared / ".a.zip.part"
    source.write_text("good")
    source.chmod(0)
    shared.chmod(0o777)
    with without_rights(), pytest.raises(NotPermittedError) as caught:
        _copy(source, partial, "a")
    assert not WRONG_REMEDY.search(str(caught.value)) and not partial.exists()


def test_a_checkpoint_that_may_not_be_read_is_not_taken_for_a_damaged_one(shared: Path) -> None:
    model, metrics = torch.nn.Linear(1, 1), shared / "metrics.jsonl"
    metrics.write_text("")
    path = save_checkpoint(
        shared / "checkpoints", step=1, identity_hash="a", model=model,
        optimizer=torch.optim.SGD(model.parameters()), counters={}, metrics=metrics,
    )  # fmt: skip
    (path / "state.pt").chmod(0)
    with without_rights(), pytest.raises(NotPermittedError) as caught:
        newest_intact(shared / "checkpoints", identities=["a"])
    assert not WRONG_REMEDY.search(str(caught.value))


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o027, 0o077])
def test_files_have_the_permissions_that_the_umask_says(shared: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with atomic_path(shared / "weights.safetensors") as staged:
            save_file({"a": torch.zeros(1)}, staged)
        model, metrics = torch.nn.Linear(1, 1), shared / "metrics.jsonl"
        metrics.write_text("")
        save_checkpoint(
            shared / "checkpoints", step=1, identity_hash="a", model=model,
            optimizer=torch.optim.SGD(model.parameters()), counters={}, metrics=metrics,
        )  # fmt: skip
        with atomic_directory(shared / "folder") as folder:
            write_json(folder / "a.json", {})
        (shared / "params").mkdir()
        (shared / "package").mkdir()
        (shared / "package/a.py").write_text("")
        frozen = freeze(root=shared, package=shared / "package")
    finally:
        os.umask(before)
    for path in shared.rglob("*"):
        expected = (0o777 if path.is_dir() else 0o666) & ~umask
        if path.is_file() and path.is_relative_to(frozen):
            expected &= 0o555
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


@pytest.mark.parametrize("place", ["params/scales", "results/mini", ""])
def test_a_call_outside_the_root_says_where_it_is(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "Max's checkout"
    (root / "params/scales").mkdir(parents=True)
    folder = root / place if place else tmp_path
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(folder)
    remedy = re.escape("cd '" + str(root).replace("'", "'\"'\"'") + "'") if place else "link"
    with pytest.raises(InputError, match=rf"params: no such folder in .*{remedy}"):
        load_project("mini")
