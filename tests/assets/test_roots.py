"""Data sets on a user's disk: found, checked, linked; nothing is written there."""

import hashlib
import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from possam.assets.archives import unpack
from possam.datasets.catalogue import datasets
from possam.params.data import load_data
from possam.params.project import Project
from possam.runtime.environment import Environment
from possam.runtime.errors import ChecksumError, InputError
from possam.runtime.files import read_json
from possam.runtime.locks import hold
from possam.stages.download import download_asset, download_assets

PARAMS = Path(__file__).resolve().parents[2] / "params"
SPLITS = {"train2017": 3, "val2017": 2}


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    """Every file and folder: size, time of change, content."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_size if path.is_file() else 0,
            path.lstat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in folder.rglob("*")
    }


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A user's COCO with three and two images, unpacked."""
    root = tmp_path / "disk" / "coco"
    for split, count in SPLITS.items():
        maps = root / "annotations" / f"panoptic_{split}"
        for folder in (root / split, maps):
            folder.mkdir(parents=True)
        for number in range(count):
            (root / split / f"{number:012d}.jpg").write_bytes(b"jpeg" + bytes([number]))
            (maps / f"{number:012d}.png").write_bytes(b"png" + bytes([number]))
        for kind in ("panoptic", "instances"):
            (root / "annotations" / f"{kind}_{split}.json").write_text("{}")
    return root


@pytest.fixture
def project(tmp_path: Path, disk: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Project]:
    """The paper's parameters with roots; COCO has as many images as ``disk``; disks are large."""
    monkeypatch.setattr("possam.stages.download.free_bytes", lambda path: 10**12)
    coco = replace(datasets()["coco"], images={"train": 3, "val": 2})
    monkeypatch.setitem(datasets(), "coco", coco)
    repository = tmp_path / "repository"
    shutil.copytree(PARAMS, repository / "params")
    monkeypatch.chdir(repository)

    def make(**roots: str | None) -> Project:
        path = repository / "params" / "data.yaml"
        data = yaml.safe_load(path.read_text())
        data["roots"] |= roots
        path.write_text(yaml.safe_dump(data))
        return Project("paper")

    return make


def raw(asset: str) -> Path:
    return Path("data/paper/raw") / asset


def record(asset: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(f"data/paper/assets/{asset}.record.json")
    return found


def test_the_case_of_a_suffix_does_not_matter(project: Callable[..., Project], disk: Path) -> None:
    photo = disk / "val2017" / "000000000001.jpg"
    photo.rename(photo.with_suffix(".JPG"))
    download_asset(project(coco=str(disk)), "coco_val_images")
    assert (raw("coco_val_images") / "val2017").resolve() == disk / "val2017"


def test_an_unpacked_folder_is_linked_and_pinned(
    project: Callable[..., Project], disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = snapshot(disk)
    download_asset(project(coco=str(disk)), "coco_panoptic")
    link = raw("coco_panoptic") / "annotations" / "panoptic_train2017"
    assert link.is_symlink() and link.resolve() == disk / "annotations" / "panoptic_train2017"
    assert not list(Path("data/paper/assets").glob("*.zip"))
    # By hand: the sorted names, sizes and contents of the four parts, in the file's order.
    lines = []
    for split in SPLITS:
        content = hashlib.sha256(b"{}").hexdigest()
        lines.append(f"annotations/panoptic_{split}.json 2 {content}\n")
    for split, count in SPLITS.items():
        for number in range(count):
            content = hashlib.sha256(b"png" + bytes([number])).hexdigest()
            lines.append(f"annotations/panoptic_{split}/{number:012d}.png 4 {content}\n")
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    found = record("coco_panoptic")
    assert (found["sha256"], found["pinned"], found["bytes"]) == (digest, True, 2 * 2 + 5 * 4)
    assert found["source"] == "data root coco" and str(disk) not in json.dumps(found)
    assert f"pinned sha256:{digest}" in capsys.readouterr().err
    assert snapshot(disk) == before


def test_other_places_of_a_part_are_known(project: Callable[..., Project], disk: Path) -> None:
    for split in SPLITS:
        (disk / "annotations" / f"panoptic_{split}").rename(disk / f"panoptic_{split}")
    download_asset(project(coco=str(disk)), "coco_panoptic")
    assert (raw("coco_panoptic") / "annotations/panoptic_val2017").resolve() == (
        disk / "panoptic_val2017"
    )


def test_images_are_known_by_names_and_sizes_annotations_by_content(
    project: Callable[..., Project], disk: Path
) -> None:
    paper = project(coco=str(disk))
    for asset in ("coco_val_images", "coco_panoptic"):
        download_asset(paper, asset)
    image = disk / "val2017" / f"{0:012d}.jpg"
    image.write_bytes(b"JPEG!")  # of the same size
    download_asset(paper, "coco_val_images")
    image.write_bytes(b"longer")
    with pytest.raises(ChecksumError, match=r"coco_val_images.*pins\.json"):
        download_asset(paper, "coco_val_images")
    (disk / "annotations/panoptic_val2017" / f"{0:012d}.png").write_bytes(b"PNG!")
    with pytest.raises(ChecksumError, match=r"coco_panoptic.*pins\.json"):
        download_asset(paper, "coco_panoptic")


def test_contents_are_hashed_once(
    project: Callable[..., Project], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = project(coco=str(disk))
    download_asset(paper, "coco_panoptic")
    first = record("coco_panoptic")
    monkeypatch.setattr(
        "possam.assets.roots.sha256_file", lambda path: pytest.fail(f"hashed again: {path}")
    )
    download_asset(paper, "coco_panoptic")
    assert record("coco_panoptic") == first


def _remove(path: str) -> Callable[[Path], None]:
    def damage(disk: Path) -> None:
        found = disk / path
        shutil.rmtree(found) if found.is_dir() else found.unlink()

    return damage


def _write(path: str, content: bytes) -> Callable[[Path], None]:
    def damage(disk: Path) -> None:
        (disk / path).write_bytes(content)

    return damage


PNG = "annotations/panoptic_val2017/000000000001.png"
DAMAGE = {
    "a file is missing": (_remove(PNG), r"panoptic_val2017: 1 files \*\.png, 2 are in the release"),
    "a file too many": (_write(PNG + ".png", b"x"), r"3 files \*\.png, 2 are"),
    "an empty file": (_write(PNG, b""), r"000000000001\.png: empty; asset coco_panoptic"),
    "a folder is missing": (
        _remove("annotations/panoptic_val2017"),
        r"panoptic_train2017\.json is there, but none of annotations/panoptic_val2017, panoptic_",
    ),
    "a JSON is missing": (
        _remove("annotations/panoptic_val2017.json"),
        r"is there, but none of annotations/panoptic_val2017\.json",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_faults_are_reported_and_nothing_is_linked(
    project: Callable[..., Project], disk: Path, case: str
) -> None:
    damage, message = DAMAGE[case]
    damage(disk)
    before = snapshot(disk)
    with pytest.raises(InputError, match=message):
        download_asset(project(coco=str(disk)), "coco_panoptic")
    assert not raw("coco_panoptic").exists()
    assert not Path("data/paper/assets/coco_panoptic.record.json").exists()
    assert snapshot(disk) == before


def test_a_link_to_nowhere_is_reported(project: Callable[..., Project], disk: Path) -> None:
    image = disk / "val2017" / f"{0:012d}.jpg"
    image.unlink()
    image.symlink_to("nowhere.jpg")
    with pytest.raises(InputError, match=r"000000000000\.jpg: cannot be read"):
        download_asset(project(coco=str(disk)), "coco_val_images")


def test_a_wrong_folder_is_reported_before_anything_is_downloaded(
    project: Callable[..., Project], disk: Path
) -> None:
    with pytest.raises(InputError, match=r"holds nothing of coco_train_images, .*val2017"):
        download_asset(project(coco=str(disk.parent)), "coco_val_images")
    with pytest.raises(InputError, match="no such folder"):
        download_asset(project(coco=str(disk / "x")), "coco_val_images")


def test_what_a_root_does_not_hold_is_downloaded(
    project: Callable[..., Project],
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(disk / "train2017")
    asked: list[str] = []

    def refuse(url: str, *_: object, **__: object) -> None:
        asked.append(url)
        raise InputError("no network here")

    monkeypatch.setattr("possam.assets.fetch.download", refuse)
    with pytest.raises(InputError, match="no network here"):
        download_asset(project(coco=str(disk)), "coco_train_images")
    assert len(asked) == 1 and asked[0].endswith("/train2017.zip")
    assert "not in its data root coco; downloading" in capsys.readouterr().err


def test_a_root_that_holds_other_assets_is_no_wrong_folder(
    project: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sam_vit_l_0b3195.pth").touch()
    monkeypatch.setattr(
        "possam.assets.fetch.download", lambda url, partial, **_: partial.write_bytes(b"wrong")
    )
    with pytest.raises(ChecksumError, match=r"sam_vit_b_01ec64\.pth from https"):
        download_asset(project(weights=str(tmp_path)), "sam_vit_b")


def test_archives_are_checked_linked_and_unpacked(
    project: Callable[..., Project], tmp_path: Path
) -> None:
    folder = tmp_path / "disk" / "ade"
    source = tmp_path / "ADE20K_2021_17_01/images/ADE/validation/urban"
    source.mkdir(parents=True)
    for name in ("a.jpg", "a_seg.png", "a.json", "a_parts_1.png"):
        (source / name).write_text(name)
    folder.mkdir()
    shutil.make_archive(str(folder / "ADE20K_2021_17_01"), "zip", tmp_path, "ADE20K_2021_17_01")
    before = snapshot(folder)
    paper = project(ade20k_full=str(folder), ade20k=str(folder))
    download_asset(paper, "ade20k_full")
    link = Path("data/paper/assets/ADE20K_2021_17_01.zip")
    assert link.is_symlink() and link.resolve().parent == folder
    unpacked = raw("ade20k_full") / source.relative_to(tmp_path)
    assert {path.name: path.read_text() for path in unpacked.iterdir()} == {
        "a.jpg": "a.jpg", "a_seg.png": "a_seg.png",
    }  # fmt: skip
    assert record("ade20k_full")["pinned"] and record("ade20k_full")["source"] == "data root"
    # A file with a published checksum that is another one: refused, and not changed.
    (folder / "ADEChallengeData2016.zip").write_bytes(b"something else")
    before |= snapshot(folder)
    with pytest.raises(ChecksumError, match=r"ade/ADEChallengeData2016\.zip: sha1 219e"):
        download_asset(paper, "ade20k")
    assert not Path("data/paper/assets/ADEChallengeData2016.zip").exists()
    assert snapshot(folder) == before


def test_a_download_never_writes_through_a_link(
    project: Callable[..., Project], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user's file changed: what replaces it here is a file of our own."""
    folder = tmp_path / "weights"
    folder.mkdir()
    weights = folder / "sam_vit_b_01ec64.pth"
    weights.write_bytes(b"right")
    digest = hashlib.sha256(b"right").hexdigest()
    paper = project(weights=str(folder))
    paper.assets["sam_vit_b"] = paper.assets["sam_vit_b"].model_copy(
        update={"checksum": f"sha256:{digest}"}
    )
    download_asset(paper, "sam_vit_b")
    target = Path("data/paper/assets/sam_vit_b_01ec64.pth")
    assert target.is_symlink()
    weights.write_bytes(b"wrong")
    monkeypatch.setattr(
        "possam.assets.fetch.download", lambda url, partial, **_: partial.write_bytes(b"right")
    )
    download_asset(paper, "sam_vit_b")
    assert not target.is_symlink() and target.read_bytes() == b"right"
    assert weights.read_bytes() == b"wrong"


def test_ade20k_full_says_what_to_do(project: Callable[..., Project]) -> None:
    with pytest.raises(InputError) as error:
        download_asset(project(), "ade20k_full")
    for part in (
        "Register at https://groups.csail.mit.edu/vision/datasets/ADE20K/",
        "data/paper/assets/ADE20K_2021_17_01.zip",
        "ade20k_full.urls",
        "data.yaml (roots)",
    ):
        assert part in str(error.value)


def test_the_environment_wins_over_the_file(
    project: Callable[..., Project], disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paper = project(coco="elsewhere")
    monkeypatch.setenv("POSSAM_DATA_ROOTS_COCO", str(disk))
    assert load_data(paper).roots["coco"] == str(disk)
    download_asset(paper, "coco_val_images")
    monkeypatch.setenv("POSSAM_DATA_ROOTS_COCO", " ")
    assert load_data(paper).roots["coco"] == "elsewhere"
    monkeypatch.setenv("POSSAM_DATA_ROOTS_COC", str(disk))
    with pytest.raises(InputError, match=r"unknown root 'coc'; valid choices: ade20k, "):
        load_data(paper)
    assert Environment.load({"POSSAM_DATA_ROOTS_A_B": "/x"}).data_roots == {"a_b": "/x"}


def _parts(**part: Any) -> dict[str, Any]:
    whole = {"path": "a", "places": ["a"], **part}
    return {"assets": {"coco_panoptic": {"root": "coco", "parts": [whole]}}}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        ({"roots": {"coco": 3}}, "roots.coco"),
        ({"images": {"coco": {"train": 1}}}, "images.*valid keys: assets, roots"),
        ({"roots": {"cocoa": "x"}}, "roots: unknown root 'cocoa'; valid choices: ade20k, "),
        ({"assets": {"nothing": {"root": "coco"}}}, "unknown asset 'nothing'"),
        (
            {"assets": {"sam_vit_b": _parts()["assets"]["coco_panoptic"]}},
            "assets.sam_vit_b.parts: this asset is no archive",
        ),
        (_parts(path="../a"), "without '..'"),
        (_parts(files=[{"suffix": ".x"}]), "one of exactly and at_least"),
        (_parts(files=[{"suffix": ".x", "exactly": "coco.test"}]), "files.0.exactly"),
        (_parts(files=[{"suffix": ".x", "at_least": "cocoa.val"}]), "unknown count 'cocoa.val'"),
    ],
)
def test_mistakes_in_the_file_are_reported(
    project: Callable[..., Project], edit: dict[str, Any], message: str
) -> None:
    paper = project()
    path = Path("params/data.yaml")
    data = yaml.safe_load(path.read_text())
    for key, value in edit.items():
        data[key] = data.get(key, {}) | value
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match=message) as error:
        load_data(paper)
    assert "data.yaml" in str(error.value)


def test_all_assets_are_listed_and_one_failure_keeps_no_other(
    project: Callable[..., Project],
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paper = project(coco=str(disk))
    download_asset(paper, "coco_val_images")
    capsys.readouterr()
    download_assets(paper, [], list_only=True)
    shown = capsys.readouterr().out
    for line in (
        r"coco_val_images +815.6 MB +815.6 MB  here",
        r"coco_train_images +19.3 GB .*on disk, to be linked",
        r"ade20k_full +~6.0 GB +400.0 MB  by hand",
        r"19 assets, 35.4 GB; 1 are here; 14\.\d GB to download, 2\.9 GB to unpack",
        r"CC BY 4.0 \(COCO Consortium\): coco_panoptic, coco_instances",
        r"ade20k_full: Register at",
    ):
        assert re.search(line, shown), (line, shown)
    assert not (raw("coco_train_images")).exists()

    def refuse(url: str, *_: object, **__: object) -> None:
        raise InputError(f"{url}: no network here")

    monkeypatch.setattr("possam.assets.fetch.download", refuse)
    with pytest.raises(InputError) as error:
        download_assets(paper, ["sam_vit_b", "coco_panoptic", "ade20k_full"])
    assert "2 of 3 assets could not be fetched" in str(error.value)
    assert "sam_vit_b_01ec64.pth: no network here" in str(error.value)
    assert raw("coco_panoptic").is_dir()


def test_a_second_process_waits_also_for_the_unpacking(
    project: Callable[..., Project],
    disk: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paper = project(coco=str(disk))
    lock = Path("data/paper/assets/.coco_val_images.lock")
    held = threading.Event()
    monkeypatch.setattr("possam.stages.download._say", lambda name, text: held.set())
    with hold(lock, timeout=0):
        waiting = threading.Thread(target=download_asset, args=(paper, "coco_val_images"))
        waiting.start()
        assert held.wait(30) and not raw("coco_val_images").exists()
    waiting.join(30)
    assert raw("coco_val_images").is_dir()


def test_too_little_space_for_everything_is_reported_first(
    project: Callable[..., Project], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("possam.stages.download.free_bytes", lambda path: 10**9)
    monkeypatch.setattr("possam.assets.fetch.download", lambda *a, **k: pytest.fail("downloaded"))
    with pytest.raises(InputError, match=r"about 60\.\d GB are needed.*1\.0 GB are free"):
        download_assets(project(), [])
    with pytest.raises(InputError, match="valid choices: "):
        download_assets(project(), ["sam_vit_x", "sam_vit_b"])


def test_official_layouts_convert_through_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The synthetic archives, unpacked on a user's disk, give the same data sets through links."""
    from possam.stages.convert import convert_dataset
    from possam.stages.world import make_world

    here = tmp_path / "repository"
    shutil.copytree(PARAMS, here / "params")
    monkeypatch.chdir(here)
    smoke = Project("smoke")
    make_world(smoke, workers=1)
    names = list(dict.fromkeys(smoke.scale.assets.values()))

    def convert() -> dict[str, str]:
        for name in names:
            download_asset(smoke, name)
        contents = {}
        for name in datasets():
            convert_dataset(smoke, name, "val", workers=1)
            manifest = read_json(f"data/smoke/datasets/{name}_val/manifest.json")
            contents[name] = manifest["content"]
        return contents

    expected = convert()
    world = smoke.scale.world
    assert world is not None
    path = Path("params/data.yaml")
    data = yaml.safe_load(path.read_text())
    mine = {}
    for dataset, declared in list(datasets().items()):
        images = {split: world.images(dataset, split) for split in declared.splits}
        monkeypatch.setitem(datasets(), dataset, replace(declared, images=images))
        mine |= {f"synthetic_{name}": entry for name, entry in declared.on_disk.items()}
    mine["synthetic_pascal_context"] = mine.pop("synthetic_pascal_context_459")
    data["assets"] = {name: entry for name, entry in mine.items() if name in names}
    del data["roots"]["weights"]
    for name, entry in data["assets"].items():
        folder = tmp_path / "disk" / entry["root"]
        folder.mkdir(parents=True, exist_ok=True)
        unpack(Path("data/smoke/assets") / smoke.assets[name].file, tmp_path / "one")
        (tmp_path / "one" / "unpacked.json").unlink()
        shutil.copytree(tmp_path / "one", folder, dirs_exist_ok=True)
        data["roots"][entry["root"]] = str(folder)
    path.write_text(yaml.safe_dump(data))
    shutil.rmtree("data/smoke")
    make_world(smoke, workers=1)
    before = snapshot(tmp_path / "disk")
    assert convert() == expected
    assert len(data["assets"]) == 9
    for name, entry in data["assets"].items():
        links = [Path(p) for f, d, _ in os.walk(raw_of(name)) for p in _links(f, d)]
        assert len(links) >= sum(bool(part["files"]) for part in map(_with_files, entry["parts"]))
    assert snapshot(tmp_path / "disk") == before


def raw_of(name: str) -> Path:
    return Path("data/smoke/raw") / name


def _links(folder: str, names: list[str]) -> list[str]:
    paths = [os.path.join(folder, name) for name in names]
    return [path for path in paths if os.path.islink(path)]


def _with_files(part: dict[str, Any]) -> dict[str, Any]:
    return {"files": [], **part}
