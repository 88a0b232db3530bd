"""One model on one data set: all variants and metrics from one forward pass per image."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from possam.datasets.format import ConvertedDataset
from possam.evaluation.budget import BudgetProbes
from possam.evaluation.options import PROBES, EvaluationOptions
from possam.evaluation.predictions import PredictionWriter
from possam.evaluation.statistics import ImageStatistics
from possam.evaluation.summary import Evaluators, count_parts, make_result, write_variants
from possam.model.encoders.text import TextEmbeddings
from possam.model.inference import (
    Geometry,
    MaskScores,
    classify,
    instance_inference,
    panoptic_inference,
    semantic_inference,
)
from possam.model.ops.strips import full_probabilities
from possam.model.options import InferenceOptions
from possam.model.resolution import resize_for_test
from possam.model.segmenter import Segmenter
from possam.runtime.errors import InputError
from possam.runtime.progress import Progress

IDENTITY = ("run", "seed", "benchmark", "condition")


@dataclass(frozen=True, kw_only=True)
class _Variant:
    """One way of turning raw predictions into results, and the objects that collect these."""

    inference: InferenceOptions
    evaluators: Evaluators
    writer: PredictionWriter | None

    def count(
        self,
        dataset: ConvertedDataset,
        position: int,
        masks: torch.Tensor,
        scores: MaskScores,
        *,
        is_thing: torch.Tensor,
        shared: dict[str, Any],
    ) -> None:
        """Turn the mask logits of the image at ``position`` into predictions, and count them.

        ``shared``: the arguments that panoptic, instance and semantic inference have in common.
        """
        record, inference, evaluators = dataset.images[position], self.inference, self.evaluators
        if evaluators.panoptic is not None:
            ids_tensor, found = panoptic_inference(
                masks,
                scores,
                is_thing=is_thing,
                mask_filter=inference.mask_filter,
                object_threshold=inference.object_threshold,
                overlap_threshold=inference.overlap_threshold,
                **shared,
            )
            ids = ids_tensor.cpu().numpy()
            segments = {segment.id: segment.category for segment in found}
            truth = {s.id: (s.category, bool(s.is_crowd)) for s in record.segments}
            evaluators.panoptic.update(record.id, ids, segments, dataset.panoptic(position), truth)
            if self.writer is not None:
                self.writer.add(record, ids, segments, {each.id: each.score for each in found})
        if evaluators.instances is not None:
            instances = instance_inference(
                masks, scores, is_thing=is_thing, top_k=inference.instance_top_k, **shared
            )
            evaluators.instances.update(
                record.id,
                instances.masks.cpu().numpy(),
                instances.labels.cpu().numpy(),
                instances.scores.double().cpu().numpy(),
                place=instances.place.cpu().numpy(),
            )
        if evaluators.semantic is not None:
            labels = semantic_inference(masks, scores, **shared)
            evaluators.semantic.update(record.id, labels.cpu().numpy(), dataset.semantic(position))


def evaluate_run(
    *,
    segmenter: Segmenter,
    dataset: ConvertedDataset,
    text: TextEmbeddings,
    seen: Sequence[bool],
    variants: Mapping[str, InferenceOptions],
    evaluation: EvaluationOptions,
    metrics: Sequence[str],
    out: Path,
    identity: Mapping[str, Any],
    device: str = "cpu",
    predictions: Path | None = None,
    budget: str | None = None,
) -> dict[str, Any]:
    """Evaluate a model and write the evaluation directory ``out``, ``evaluation.json`` last.

    Args:
        segmenter: on ``device``.
        text: embedded names of the data set's classes (shuffled by the caller for the control).
        seen: one flag per class, True if trained on; for the ensemble and the metrics' subsets.
        variants: inference settings by name, all of one test resolution. Towers and network run
            once per image for all variants.
        metrics: any of ``panoptic``, ``instance``, ``semantic``.
        identity: at least ``run``, ``seed``, ``benchmark``, ``condition``; copied to the result.
        predictions: folder for the panoptic predictions, one folder per variant; ``None``: they
            are not kept.
        budget: the variant whose error budget is computed from the same passes of the towers; its
            probes (:mod:`possam.evaluation.budget`) stand beside the variants. It uses the parts of
            the network, which ``evaluation.compile`` leaves as they are.

    Returns:
        The content of ``evaluation.json``: metrics and intervals of each variant, in percent.

    Raises:
        InputError: the vocabulary does not fit the data set.
        PossamError: panopticapi computes another PQ from the same predictions.
    """
    _check_vocabulary(dataset, text, seen)
    if missing := [key for key in IDENTITY if key not in identity]:
        raise ValueError(f"identity lacks {missing}")
    if len({inference.resolution for inference in variants.values()}) != 1:
        raise ValueError("variants: they share a forward pass and need one test resolution")
    instances = dataset.instances() if "instance" in metrics else None
    results: dict[str, Any] = {}
    statistics: dict[str, ImageStatistics] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if predictions is None else predictions
        parts = {}
        for name, inference in variants.items():
            writer = None
            if "panoptic" in metrics and (evaluation.check_panopticapi or predictions):
                writer = PredictionWriter(folder / name, dataset)
            evaluators = Evaluators.of(dataset, metrics, instances=instances)
            parts[name] = _Variant(inference=inference, evaluators=evaluators, writer=writer)
        probes = None if budget is None else BudgetProbes(dataset, metrics)
        _predict_all(
            segmenter=segmenter.eval(),
            dataset=dataset,
            text=text.to(torch.device(device)),
            seen=torch.tensor(list(seen), dtype=torch.bool, device=device),
            variants=list(parts.values()),
            batch_size=evaluation.batch_size,
            probes=None if budget is None or probes is None else (parts[budget], probes),
            label="evaluate {run} (seed {seed}) on {benchmark}, {condition}".format(**identity),
        )
        for name, part in parts.items():
            written = None if part.writer is None else part.writer.close()
            statistics[name], results[name] = make_result(
                dataset=dataset,
                evaluators=part.evaluators,
                seen=seen,
                evaluation=evaluation,
                protocol={"inference": part.inference.model_dump(mode="json")},
                semantic_prediction="argmax over classes of summed mask scores",
                written=written if evaluation.check_panopticapi else None,
            )
        for name, own in ({} if probes is None else probes.evaluators).items():
            statistics[name], results[name] = make_result(
                dataset=dataset,
                evaluators=own,
                seen=seen,
                evaluation=evaluation,
                protocol={"probe": PROBES[name], "of": budget},
                semantic_prediction="as the probe says",
                written=None,
            )
    result = {**identity, "counts": count_parts(dataset, seen), "variants": results}
    write_variants(out, result, statistics)
    return result


def _check_vocabulary(
    dataset: ConvertedDataset, text: TextEmbeddings, seen: Sequence[bool]
) -> None:
    classes = len(dataset.categories)
    counts = {"text embeddings": text.num_classes, "flags of seen classes": len(seen)}
    for name, count in counts.items():
        if count != classes:
            raise InputError(
                f"{dataset.directory}: {classes} classes, but {count} {name}; "
                "embed the vocabulary of this data set"
            )
    if not len(dataset):
        raise InputError(f"{dataset.directory}: no images to evaluate; convert the data set again")


def size_batches(dataset: ConvertedDataset, batch_size: int) -> Iterator[list[int]]:
    """Batches of positions of images of equal size, at most ``batch_size``; every image once."""
    groups: dict[tuple[int, int], list[int]] = {}
    for position, record in enumerate(dataset.images):
        groups.setdefault((record.height, record.width), []).append(position)
    for group in groups.values():
        yield from (group[start : start + batch_size] for start in range(0, len(group), batch_size))


@torch.inference_mode()
def _predict_all(
    *,
    segmenter: Segmenter,
    dataset: ConvertedDataset,
    text: TextEmbeddings,
    seen: torch.Tensor,
    variants: Sequence[_Variant],
    probes: tuple[_Variant, BudgetProbes] | None,
    batch_size: int,
    label: str,
) -> None:
    is_thing = torch.tensor([c.is_thing for c in dataset.categories], device=seen.device)
    resolution, padding = variants[0].inference.resolution, segmenter.features.padding
    with Progress(len(dataset), label=label, unit="images") as progress:
        for positions in size_batches(dataset, batch_size):
            pixels = [torch.from_numpy(dataset.image(place)) for place in positions]
            tests = [
                resize_for_test(image.permute(2, 0, 1), resolution, padding=padding)
                for image in pixels
            ]
            images = torch.stack([test.pixels for test in tests]).to(seen.device)
            if probes is None:
                raw = segmenter(images)
            else:
                maps, size = segmenter.features(images), (images.shape[2], images.shape[3])
                raw = segmenter.predict_from_features(*maps, image_size=size)
            scored = partial(
                classify,
                text=text,
                possam=segmenter.possam,
                clip_logit_scale=segmenter.clip.logit_scale,
                seen=seen,
            )
            scores = [scored(raw, options=variant.inference) for variant in variants]
            if probes is not None:
                probed, budget = probes
                truths, masks = budget.truths(positions, tests[0], padded=raw.padded_size)
                given = segmenter.predict_from_features(
                    *maps, image_size=size, masks=masks.to(seen.device)
                )
                named = scored(given, options=probed.inference).labels.cpu().numpy()
            for row, (position, test) in enumerate(zip(positions, tests, strict=True)):
                predicted = raw.mask_logits[row]
                geometry = Geometry(
                    padded=raw.padded_size, content=test.content_size, output=test.original_size
                )
                shared = {
                    "image": row,
                    "geometry": geometry,
                    "probabilities": full_probabilities(predicted, geometry),
                }
                for variant, own in zip(variants, scores, strict=True):
                    variant.count(
                        dataset, position, predicted, own, is_thing=is_thing, shared=shared
                    )
                    if probes is not None and variant is probed:
                        budget.count_named(position, truths[row], named[row])
                        budget.count_oracle(
                            position, predicted, own, truths[row],
                            inference=probed.inference, shared=shared,
                        )  # fmt: skip
            progress.update(len(positions))
