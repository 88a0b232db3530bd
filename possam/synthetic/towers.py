"""All towers of the mini world: train them from scratch, measure them, write their provenance.

The four trainings are independent. Each runs in its own process with one CPU thread, so that the
result does not depend on how many run at a time.
"""

import json
import math
import shutil
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from segment_anything.modeling import Sam
from torch import Tensor

from possam.model.encoders.clip import FrozenClip, load_clip
from possam.model.encoders.sam import SamEncoder, load_sam
from possam.runtime.errors import InputError
from possam.runtime.files import (
    atomic_directory,
    read_json,
    remove_leftovers,
    sha256_file,
    write_json,
)
from possam.runtime.pools import usable
from possam.runtime.provenance import provenance
from possam.runtime.reading import check_readable
from possam.synthetic.fitting import (
    FitSettings,
    SceneSet,
    one_thread,
    render_scene_set,
    segment_masks,
)
from possam.synthetic.pretrain_clip import (
    BPE_NAME,
    CONFIG_NAME,
    WEIGHTS_NAME,
    ClipSettings,
    pool_regions,
    pretrain_clip,
)
from possam.synthetic.pretrain_sam import (
    VARIANTS,
    SamSettings,
    decode_clicks,
    mask_iou,
    pretrain_sam,
    weights_name,
)
from possam.synthetic.scenes import STYLES
from possam.synthetic.vocabulary import (
    CLASSES,
    TEMPLATES,
    WorldClass,
    domain_classes,
    domain_names,
    seen_in_training,
)

PROVENANCE_NAME = "provenance.json"
CLIP_NAME = "synthetic_clip"
SEED = 0
"""Seed of the towers that are shipped."""
_DIGITS = 4
_Measured = Literal["a", "b", "held"]
_DOMAINS: tuple[_Measured, ...] = ("a", "b", "held")
QUALITY_SEED = 2
"""Seed of the scenes that quality is measured on; training scenes are of another split, too."""
_BATCH = 25
_VILD_TEMPLATES = TEMPLATES[:14]


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """Settings of all trainings, and of the measurement of their quality.

    Iterations are such that mask quality rises with the size, as it does among the official SAMs.
    One click asks more often for a part than for the whole, so that the largest SAM fits one click
    on a segment as well as the official one does (params/calibration.yaml), because the click is
    ambiguous and not because the masks are rough.
    """

    clip: ClipSettings = field(default_factory=ClipSettings)
    sam: dict[str, SamSettings] = field(
        default_factory=lambda: {
            "synthetic_b": SamSettings(iterations=1_400, part_share=0.85, mean_weight=0.05),
            "synthetic_l": SamSettings(iterations=2_000, part_share=0.85, mean_weight=0.05),
            "synthetic_h": SamSettings(iterations=2_400, part_share=0.85, mean_weight=0.05),
        }
    )
    clip_quality_scenes: int = 400
    sam_quality_scenes: int = 100


def class_scores(clip: FrozenClip, embeddings: Tensor, names: list[tuple[str, ...]]) -> Tensor:
    """Cosine of embeddings (N, E) with K classes, (N, K): mean over templates, best over names."""
    texts = [t.format(name) for group in names for name in group for t in _VILD_TEMPLATES]
    text = clip.encode_text(texts).unflatten(0, (-1, len(_VILD_TEMPLATES))).mean(1)
    scores = F.normalize(embeddings, dim=-1) @ F.normalize(text, dim=-1).T
    parts = scores.split([len(group) for group in names], dim=1)
    return torch.stack([part.max(1).values for part in parts], dim=1)


@torch.no_grad()
def region_embeddings(clip: FrozenClip, scenes: SceneSet) -> tuple[Tensor, Tensor]:
    """CLIP embeddings (N, E) of all segments, pooled in their true masks, and classes (N,)."""
    found = []
    for start in range(0, len(scenes), _BATCH):
        rows = slice(start, start + _BATCH)
        features = clip.encode_dense(scenes.images[rows].float())
        masks = segment_masks(scenes.ids[rows], scenes.classes.shape[1])
        found.append(clip.project(pool_regions(features, masks))[scenes.classes[rows] >= 0])
    return torch.cat(found), scenes.classes[scenes.classes >= 0]


def clip_accuracy(clip: FrozenClip, *, domain: _Measured, scenes: int) -> dict[str, float]:
    """Share of segments whose best class, over all classes of ``domain``, is the right one.

    Returns ``things_seen``, ``things_unseen`` (by PosSAM, which trains on domain A) and ``stuff``.
    For "held", whose things CLIP has never seen, all classes of the world compete; returns
    ``things`` and ``stuff``.
    """
    vocabulary: tuple[WorldClass, ...] = CLASSES if domain == "held" else domain_classes(domain)
    names = [c.names if domain == "held" else domain_names(domain, c) for c in vocabulary]
    data = render_scene_set(scenes, domain=domain, split="val", seed=QUALITY_SEED)
    embeddings, classes = region_embeddings(clip, data)
    best = class_scores(clip, embeddings, names).argmax(1)
    position = {c.index: k for k, c in enumerate(vocabulary)}
    right: dict[str, list[bool]] = {}
    for index, guess in zip(classes.tolist(), best.tolist(), strict=True):
        group = "stuff"
        if CLASSES[index].is_thing:
            seen = "_seen" if seen_in_training(CLASSES[index]) else "_unseen"
            group = "things" if domain == "held" else f"things{seen}"
        right.setdefault(group, []).append(guess == position[index])
    return {group: float(np.mean(hits)) for group, hits in sorted(right.items())}


def inner_click(mask: np.ndarray) -> tuple[int, int]:
    """The pixel (x, y) of a mask, bool (H, W), farthest from its boundary and the image's edge."""
    distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(distance.argmax()), mask.shape)
    return int(x), int(y)


@torch.no_grad()
def sam_click_iou(
    sam: Sam, *, domain: _Measured, scenes: int, seed: int = QUALITY_SEED
) -> dict[str, float]:
    """IoU of masks from one inner click on each segment, at the images' resolution.

    Returns ``chosen`` (the mask that the IoU head prefers), ``oracle`` (the best of the three),
    ``things`` and ``stuff`` (``chosen`` of each) and ``head_error`` (mean absolute error of the
    predicted IoU).
    """
    encoder = SamEncoder(sam.image_encoder)
    data = render_scene_set(scenes, domain=domain, split="val", seed=seed)
    chosen, oracle, error, is_thing = [], [], [], []
    for start in range(0, len(data), _BATCH):
        rows = slice(start, start + _BATCH)
        present = data.classes[rows] >= 0
        masks = segment_masks(data.ids[rows], present.shape[1])[present] > 0
        clicks = torch.tensor([inner_click(mask) for mask in masks.numpy()], dtype=torch.float32)
        embeddings = encoder(data.images[rows].float())[present.nonzero()[:, 0]]
        logits, predicted = decode_clicks(sam, embeddings, clicks)
        logits = F.interpolate(logits, masks.shape[-2:], mode="bilinear", align_corners=False)
        iou = mask_iou(logits > 0, masks[:, None])
        best = predicted.argmax(1, keepdim=True)
        chosen.append(iou.gather(1, best)[:, 0])
        oracle.append(iou.max(1).values)
        error.append((predicted - iou).abs().mean(1))
        is_thing.append(data.classes[rows][present] < sum(c.is_thing for c in CLASSES))
    picked, things = torch.cat(chosen), torch.cat(is_thing)
    return {
        "chosen": float(picked.mean()),
        "oracle": float(torch.cat(oracle).mean()),
        "things": float(picked[things].mean()),
        "stuff": float(picked[~things].mean()),
        "head_error": float(torch.cat(error).mean()),
    }


def tower_files() -> tuple[str, ...]:
    """Names of the files that make up the towers, without the provenance."""
    return (*(weights_name(v) for v in VARIANTS), CONFIG_NAME, WEIGHTS_NAME, BPE_NAME)


def measure_quality(
    towers: Path, *, clip_scenes: int = 400, sam_scenes: int = 100
) -> dict[str, dict[str, dict[str, float]]]:
    """Recompute the quality figures of the towers in a folder, on fixed scenes, on one thread.

    Returns tower -> domain -> figure (see :func:`clip_accuracy` and :func:`sam_click_iou`), rounded
    to four digits.
    """
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with one_thread():
        clip = load_clip(config=towers / CONFIG_NAME, checkpoint=towers / WEIGHTS_NAME)
        figures[CLIP_NAME] = {
            domain: clip_accuracy(clip, domain=domain, scenes=clip_scenes) for domain in _DOMAINS
        }
        for variant in VARIANTS:
            sam = load_sam(towers / weights_name(variant), architecture=variant)
            figures[variant] = {
                domain: sam_click_iou(sam, domain=domain, scenes=sam_scenes)
                for domain in _DOMAINS[:2]
            }
    return {
        tower: {
            domain: {name: round(value, _DIGITS) for name, value in values.items()}
            for domain, values in domains.items()
        }
        for tower, domains in figures.items()
    }


def _train_part(part: Path, name: str, *, settings: Any, seed: int, start: Path | None) -> None:
    """Train tower ``name`` into the directory ``part``, which appears when it is done."""
    began = time.monotonic()
    with atomic_directory(part) as folder:
        if name == CLIP_NAME:
            pretrain_clip(out=folder, seed=seed, settings=settings, start=start)
        else:
            pretrain_sam(variant=name, out=folder, seed=seed, settings=settings, start=start)
        seconds = math.ceil(time.monotonic() - began)
        record = _origin(settings, seed, start) | {"training_wall_time_s": seconds}
        write_json(folder / PROVENANCE_NAME, record)


def _origin(settings: FitSettings, seed: int, start: Path | None) -> dict[str, Any]:
    """What a tower's weights depend on beside code and machine."""
    inputs = {name: sha256_file(start / name) for name in tower_files()} if start else {}
    style = json.loads(json.dumps(asdict(STYLES["web"])))
    return {"settings": asdict(settings), "seed": seed, "inputs": inputs, "style": style}


def _is_done(part: Path, origin: dict[str, Any]) -> bool:
    record = part / PROVENANCE_NAME
    return record.is_file() and origin.items() <= read_json(record).items()


def rebuild_towers(
    out: Path,
    *,
    seed: int = SEED,
    settings: TowerSettings | None = None,
    workers: int = 2,
    start: Path | None = None,
) -> dict[str, Any]:
    """Train all towers into the folder ``out``; returns its ``provenance.json``.

    That holds the settings, seed, versions and seconds of each training, ``files`` (name ->
    ``sha256``, ``bytes``) and ``quality`` (of :func:`measure_quality`). ``out`` appears (or is
    replaced) only when everything is done: about 50 minutes on two cores with the defaults. Towers
    that are done wait in ``<out>.parts``; after a kill the same call takes them over if settings,
    seed and the look of the scenes are the same. The same seed on the same machine and library
    versions gives the same files, with any number of ``workers``; another machine's kernels may
    round differently, and training amplifies that.

    ``start``: a folder of towers to go on from, whose hashes become the record's ``inputs``; None:
    from random weights.

    Raises:
        InputError: ``workers`` is below 1, or a tower is missing in ``start``.
        TrainingError: a loss is not finite.
    """
    if workers < 1:
        raise InputError(f"workers: {workers}: at least 1 is needed")
    settings = settings or TowerSettings()
    if start is not None:
        for name in tower_files():
            check_readable(start / name, missing="name a folder of towers")
    started = time.time()
    # The longest first, so that no core is idle at the end.
    trainings: dict[str, FitSettings] = {CLIP_NAME: settings.clip}
    trainings |= {variant: settings.sam[variant] for variant in reversed(VARIANTS)}
    parts = out.with_name(f"{out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    remove_leftovers(parts)
    jobs = {
        name: partial(_train_part, parts / name, name, settings=own, seed=seed, start=start)
        for name, own in trainings.items()
        if not _is_done(parts / name, _origin(own, seed, start))
    }
    for name in trainings.keys() - jobs.keys():
        print(f"{parts / name}: done before, taken over", flush=True)
    if workers > 1 and usable(workers) > 1:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for future in as_completed([pool.submit(job) for job in jobs.values()]):
                future.result()
    else:
        for job in jobs.values():
            job()
    record = provenance(
        stage="pretrain",
        parameters=asdict(settings) | {"quality_seed": QUALITY_SEED},
        inputs=_origin(settings.clip, seed, start)["inputs"],
        seed=seed,
        started=started,
    )
    record["training_wall_time_s"] = {
        name: read_json(parts / name / PROVENANCE_NAME)["training_wall_time_s"]
        for name in sorted(trainings)
    }
    with atomic_directory(out) as folder:
        for name in trainings:
            shutil.copytree(
                parts / name, folder, dirs_exist_ok=True,
                ignore=shutil.ignore_patterns(PROVENANCE_NAME),
            )  # fmt: skip
        record["files"] = {
            name: {"sha256": sha256_file(folder / name), "bytes": (folder / name).stat().st_size}
            for name in tower_files()
        }
        record["quality"] = measure_quality(
            folder,
            clip_scenes=settings.clip_quality_scenes,
            sam_scenes=settings.sam_quality_scenes,
        )
        write_json(folder / PROVENANCE_NAME, record)
    shutil.rmtree(parts)
    return record
