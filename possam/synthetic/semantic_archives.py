"""Archives of the two test sets that have only label maps: ADE20K-full and PASCAL Context."""

import json
from collections.abc import Iterable
from pathlib import Path

from possam.synthetic.annotate import ADE_FULL_FOLDER, AdeFullScene, ContextScene
from possam.synthetic.packing import fixed_tar, fixed_zip, tar_add

ADE_FULL = "ADE20K_2021_17_01.zip"
VOC = "VOCtrainval_03-May-2010.tar"
CONTEXT = "trainval.tar.gz"


def write_ade_full(directory: Path, scenes: Iterable[AdeFullScene]) -> None:
    """Write the zip of the full release: photograph, label map and objects beside each other."""
    with fixed_zip(directory / ADE_FULL) as archive:
        for scene in scenes:
            stem = f"{ADE_FULL_FOLDER}/ADE_val_{scene.number:08d}"
            archive.add(f"{stem}.jpg", scene.jpeg)
            archive.add(f"{stem}_seg.png", scene.labels)
            archive.add(f"{stem}.json", json.dumps(scene.objects).encode(), compress=True)


def write_context(directory: Path, scenes: Iterable[ContextScene]) -> None:
    """Write the photographs with their list, and the MATLAB files."""
    stems: list[str] = []
    with (
        fixed_tar(directory / VOC) as photographs,
        fixed_tar(directory / CONTEXT, compress=True) as labels,
    ):
        for scene in scenes:
            stem = f"2010_{scene.number:06d}"
            tar_add(photographs, f"VOCdevkit/VOC2010/JPEGImages/{stem}.jpg", scene.jpeg)
            tar_add(labels, f"trainval/{stem}.mat", scene.labels)
            stems.append(stem)
        listing = "".join(f"{stem}\n" for stem in stems).encode()
        tar_add(photographs, "VOCdevkit/VOC2010/ImageSets/Main/val.txt", listing)
