"""Speed and size of a model (paper, Table 0.B.1): images per second, and numbers of parameters."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from possam.datasets.format import ConvertedDataset
from possam.evaluation.options import EvaluationOptions
from possam.evaluation.segment import segment_image
from possam.evaluation.statistics import frames_per_second
from possam.evaluation.summary import SECONDS, count_parts, write_variants
from possam.model.encoders.clip import FrozenClip, build_open_clip
from possam.model.encoders.sam import SamEncoder, build_sam, find_architecture
from possam.model.encoders.text import TextEmbeddings
from possam.model.options import InferenceOptions, ModelOptions
from possam.model.possam import build_possam
from possam.model.segmenter import Segmenter
from possam.runtime.progress import track
from possam.runtime.provenance import hardware

WARM_UP = 3
"""Fewest images that run before the clock starts: they fill caches and initialise libraries."""

PROTOCOL = (
    "one image at a time, from pixels in memory to its panoptic map (resizing, both towers, "
    "decoder, classification, merging); names embedded before; after a warm-up with images of "
    "every size; reading and decoding files not counted"
)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters; ``frozen``: CLIP's image and text towers, SAM's image encoder."""

    trainable: int
    frozen: int

    @property
    def total(self) -> int:
        """Trainable and frozen parameters together."""
        return self.trainable + self.frozen


def count_parameters(
    *, sam_architecture: str | None, clip_config: Path | str, model: ModelOptions
) -> ParameterCount:
    """Count parameters on the meta device: networks are built, but no weight is allocated.

    Args:
        sam_architecture: of :data:`~possam.model.encoders.sam.ARCHITECTURES`; None: no SAM.
        clip_config: an open_clip JSON file or the name of a built-in open_clip model.

    Raises:
        InputError: an unknown architecture, or a configuration that cannot be built.
    """
    with torch.device("meta"):
        network, tokenizer, size = build_open_clip(clip_config)
        clip = FrozenClip(model=network, tokenizer=tokenizer, image_size=size)
        channels, frozen = list(clip.stage_channels), _count(clip)
        if sam_architecture is not None:
            sam = SamEncoder(build_sam(find_architecture(sam_architecture)).image_encoder)
            channels, frozen = [sam.channels], frozen + _count(sam)
        possam = build_possam(
            model,
            backbone_channels=channels,
            clip_channels=clip.dense_channels,
            embed_dim=clip.embed_dim,
            seed=0,
        )
    return ParameterCount(trainable=_count(possam), frozen=frozen)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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
    """Seconds (I,) of each of the first ``images`` images (of all, if there are fewer).

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
        # The ids are copied to the CPU, so a GPU has finished when the clock is read.
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
    counts = {name: getattr(parameters, name) for name in ("trainable", "frozen", "total")}
    sizes = {f"{name}_m": count / 1e6 for name, count in counts.items()}
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
            "intervals": {"fps": list(interval), **{key: [n, n] for key, n in sizes.items()}},
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
    """Name of the GPU, or of the processor with the number of threads used."""
    device = next(segmenter.parameters()).device
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{hardware()['cpu']}, {torch.get_num_threads()} of {hardware()['cores']} cores"
