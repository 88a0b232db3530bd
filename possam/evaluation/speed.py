"""Speed of a model (paper, Table 0.B.1: FPS), one image at a time, as a user would run it."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from possam.datasets.format import ConvertedDataset
from possam.evaluation.efficiency import ParameterCount
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.segment import segment_image
from possam.evaluation.statistics import frames_per_second
from possam.evaluation.summary import SECONDS, count_parts, write_variants
from possam.model.encoders.text import TextEmbeddings
from possam.model.options import InferenceOptions
from possam.model.segmenter import Segmenter
from possam.runtime.progress import track
from possam.runtime.provenance import hardware

WARM_UP = 3
"""At least so many images run before the clock starts: caches, memory, lazy initialisation."""

PROTOCOL = (
    "one image at a time, from pixels in memory to its panoptic map (resizing, both towers, "
    "decoder, classification, merging); names embedded before; after a warm-up with images of "
    "every size; reading and decoding files not counted"
)


def time_images(
    *,
    segmenter: Segmenter,
    dataset: ConvertedDataset,
    text: TextEmbeddings,
    seen: Sequence[bool],
    inference: InferenceOptions,
    images: int,
    label: str,
) -> tuple[NDArray[np.float64], float]:
    """Seconds that each of the first ``images`` images takes (all, if there are fewer).

    Also returns the seconds of the warm-up, in which a compiled network is compiled.
    """
    things = [category.is_thing for category in dataset.categories]
    segmenter.eval()
    positions = range(min(images, len(dataset)))
    sizes = [(record.height, record.width) for record in dataset.images[: len(positions)]]
    warm_up = [sizes.index(size) for size in dict.fromkeys(sizes)]
    warm_up += [positions[k % len(positions)] for k in range(WARM_UP - len(warm_up))]
    seconds = []
    for place in track([*warm_up, *positions], total=len(warm_up) + len(positions), label=label):
        pixels = dataset.image(place)
        start = time.perf_counter()
        # The ids come back to the host, so that a GPU has finished when the clock is read.
        segment_image(
            pixels, segmenter=segmenter, text=text, things=things, seen=seen, inference=inference
        )
        seconds.append(time.perf_counter() - start)
    return np.array(seconds[len(warm_up) :]), sum(seconds[: len(warm_up)])


def measure_efficiency(
    *,
    segmenter: Segmenter,
    dataset: ConvertedDataset,
    text: TextEmbeddings,
    seen: Sequence[bool],
    variants: Mapping[str, InferenceOptions],
    images: int,
    parameters: ParameterCount,
    evaluation: EvaluationOptions,
    identity: Mapping[str, Any],
    out: Path,
) -> dict[str, Any]:
    """Time every variant; write ``evaluation.json`` with times and parameter counts into ``out``.

    Unlike other evaluations, the result depends on the machine and on what else runs there.
    """
    sizes = {
        "trainable_m": parameters.trainable / 1e6,
        "frozen_m": parameters.frozen / 1e6,
        "total_m": parameters.total / 1e6,
    }
    results: dict[str, Any] = {}
    for name, inference in variants.items():
        seconds, warm_up = time_images(
            segmenter=segmenter,
            dataset=dataset,
            text=text,
            seen=seen,
            inference=inference,
            images=images,
            label="time {run} (seed {seed}), ".format(**identity) + name,
        )
        (rate,), interval = frames_per_second(seconds, bootstrap=evaluation.bootstrap)
        results[name] = {
            "metrics": {"fps": rate, **sizes},
            "intervals": {
                "fps": list(interval),
                **{key: [size] * 2 for key, size in sizes.items()},
            },
            "per_class": [],
            "check": None,
            "protocol": {
                "fps": PROTOCOL,
                "machine": _machine(segmenter),
                "compile": evaluation.compile,
                "warm_up_s": warm_up,
                SECONDS: list(seconds),
            },
        }
    result = {**identity, "counts": count_parts(dataset, seen), "variants": results}
    write_variants(out, result, {})
    return result


def _machine(segmenter: Segmenter) -> str:
    """The GPU, or the processor and the threads used."""
    device = next(segmenter.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{hardware()['cpu']}, {torch.get_num_threads()} of {hardware()['cores']} cores"
