"""All towers of the mini world: train them from nothing, measure them, write their provenance.

The four trainings are independent. Each runs in a process of its own with one CPU thread, so that
the result does not depend on how many run side by side.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from possam.model.encoders.clip import load_clip
from possam.model.encoders.sam import load_sam
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_directory, sha256_file, write_json
from possam.runtime.provenance import provenance
from possam.synthetic.fitting import one_thread
from possam.synthetic.pretrain_clip import (
    BPE_NAME,
    CONFIG_NAME,
    WEIGHTS_NAME,
    ClipSettings,
    pretrain_clip,
)
from possam.synthetic.pretrain_sam import VARIANTS, SamSettings, pretrain_sam, weights_name
from possam.synthetic.quality import QUALITY_SEED, clip_accuracy, sam_click_iou

PROVENANCE_NAME = "provenance.json"
SEED = 0
"""Seed of the towers that are shipped."""
_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """Settings of all trainings, and of the measurement of their quality.

    The larger SAMs learn more slowly per iteration; iterations rise with the size, so that mask
    quality rises too, as it does among the official SAMs.
    """

    clip: ClipSettings = field(default_factory=ClipSettings)
    sam: dict[str, SamSettings] = field(
        default_factory=lambda: {
            "synthetic_b": SamSettings(iterations=750),
            "synthetic_l": SamSettings(iterations=2_000),
            "synthetic_h": SamSettings(iterations=2_500),
        }
    )
    clip_quality_scenes: int = 400
    sam_quality_scenes: int = 100


def tower_files() -> tuple[str, ...]:
    """Names of the files that make up the towers, without the provenance."""
    return (*(weights_name(v) for v in VARIANTS), CONFIG_NAME, WEIGHTS_NAME, BPE_NAME)


def measure_quality(
    towers: Path, *, clip_scenes: int = 400, sam_scenes: int = 100
) -> dict[str, dict[str, dict[str, float]]]:
    """Recompute the quality figures of the towers in a folder, on fixed scenes, on one thread.

    Returns tower -> domain -> figure (see :func:`possam.synthetic.quality.clip_accuracy` and
    :func:`~possam.synthetic.quality.sam_click_iou`), rounded to four digits.
    """
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with one_thread():
        clip = load_clip(config=towers / CONFIG_NAME, checkpoint=towers / WEIGHTS_NAME)
        figures["synthetic_clip"] = {
            "a": clip_accuracy(clip, domain="a", scenes=clip_scenes),
            "b": clip_accuracy(clip, domain="b", scenes=clip_scenes),
            "held": clip_accuracy(clip, domain="held", scenes=clip_scenes),
        }
        for variant in VARIANTS:
            sam = load_sam(towers / weights_name(variant), architecture=variant)
            figures[variant] = {
                "a": sam_click_iou(sam, domain="a", scenes=sam_scenes),
                "b": sam_click_iou(sam, domain="b", scenes=sam_scenes),
            }
    return {
        tower: {
            domain: {name: round(value, _DIGITS) for name, value in values.items()}
            for domain, values in domains.items()
        }
        for tower, domains in figures.items()
    }


def write_towers_provenance(
    towers: Path,
    *,
    settings: TowerSettings,
    seed: int,
    wall_times: dict[str, float],
    started: float,
) -> dict[str, Any]:
    """Measure the towers in a folder and write its ``provenance.json``.

    It holds the settings, seed, versions and times, ``files`` (name -> ``sha256``, ``bytes``) and
    ``quality`` (the figures of :func:`measure_quality`). ``wall_times``: seconds of each training.
    """
    parameters = asdict(settings) | {"quality_seed": QUALITY_SEED}
    record = provenance(
        stage="pretrain",
        parameters=parameters,
        inputs={},
        seed=seed,
        started=started,
        root=Path(__file__).resolve().parents[2],
    )
    record["training_wall_time_s"] = {k: math.ceil(v) for k, v in sorted(wall_times.items())}
    record["files"] = {
        name: {"sha256": sha256_file(towers / name), "bytes": (towers / name).stat().st_size}
        for name in tower_files()
    }
    record["quality"] = measure_quality(
        towers, clip_scenes=settings.clip_quality_scenes, sam_scenes=settings.sam_quality_scenes
    )
    write_json(towers / PROVENANCE_NAME, record)
    return record


def _timed(job: Callable[[], None]) -> float:
    start = time.monotonic()
    job()
    return time.monotonic() - start


def rebuild_towers(
    out: Path, *, seed: int = SEED, settings: TowerSettings | None = None, workers: int = 2
) -> dict[str, Any]:
    """Train all towers from nothing into the folder ``out`` and return its provenance.

    ``out`` appears (or is replaced) only when everything is done. About 30 minutes on two cores
    with the defaults. The same seed on the same machine and library versions gives the same files,
    with any number of ``workers``; another machine's kernels may round differently, and
    training amplifies that.

    Raises:
        TrainingError: a loss is not finite.
    """
    if workers < 1:
        raise InputError(f"workers: {workers}: at least 1 is needed")
    settings = settings or TowerSettings()
    started = time.time()
    wall_times: dict[str, float] = {}
    with atomic_directory(out) as folder:
        jobs: dict[str, Callable[[], None]] = {
            # The longest first, so that no core is idle at the end.
            variant: partial(
                pretrain_sam, variant=variant, out=folder, seed=seed, settings=settings.sam[variant]
            )
            for variant in reversed(VARIANTS)
        }
        jobs["synthetic_clip"] = partial(
            pretrain_clip, out=folder, seed=seed, settings=settings.clip
        )
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            futures: dict[Future[float], str] = {
                pool.submit(_timed, job): name for name, job in jobs.items()
            }
            for future in as_completed(futures):
                wall_times[futures[future]] = future.result()
        record = write_towers_provenance(
            folder, settings=settings, seed=seed, wall_times=wall_times, started=started
        )
    return record
