"""A model as ONNX graphs, for onnxruntime and whatever else reads them.

Each part is a graph of its own, so that words and thresholds change without the towers: ``sam``
(if the model has one) and ``clip`` see images, ``decoder`` finds masks in their maps, and
``classifier`` names the masks with any words, whose embeddings are an input. All compute in
float32, on images of any size whose sides are multiples of ``multiple`` pixels.

Shapes: B images, Q masks, K words of S names, C background classes, E CLIP embedding, H W.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from possam.evaluation.training_free import TrainingFreeSegmenter
from possam.model.ensemble import Ensemble
from possam.model.options import InferenceOptions
from possam.model.registry import ENSEMBLES, load_part
from possam.model.segmenter import Segmenter
from possam.pictures.model import Model
from possam.pictures.vocabulary import Vocabulary
from possam.runtime.errors import InputError
from possam.runtime.files import atomic_directory, write_json

FORMAT = "possam-onnx-1"
DESCRIPTION = "model.json"
OPSET = 20
_EMBEDDED_BYTES = 1_500_000_000
"""Larger weights lie in a file beside the graph: an ONNX file has at most 2 GB."""


@dataclass(frozen=True)
class _Names:
    """Embedded names in a box: (K, S, E), where a class of fewer names repeats its first."""

    names: Tensor

    def similarity(self, embeddings: Tensor) -> Tensor:
        """As of :class:`~possam.model.encoders.text.TextEmbeddings`: (..., E) -> (..., K)."""
        cosine = embeddings @ self.names.flatten(0, 1).T
        return cosine.unflatten(-1, self.names.shape[:2]).amax(-1)


class _ClipMaps(nn.Module):
    """CLIP's dense map, or all of its stages for a model without SAM."""

    def __init__(self, clip: Any, *, stages: bool) -> None:
        super().__init__()
        self.clip, self.stages = clip, stages

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps: tuple[Tensor, ...] = self.clip.encode_stages(images)
        return maps if self.stages else maps[-1:]


class _Decoder(nn.Module):
    """The trained part, up to what does not depend on words."""

    def __init__(self, segmenter: Segmenter, *, weighted: bool) -> None:
        super().__init__()
        self.possam, self.clip, self.weighted = segmenter.possam, segmenter.clip, weighted

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        backbone = maps if len(maps) > 2 else maps[:1]
        output = self.possam(backbone, maps[-1])
        last = output.layers[-1]
        clip_embeddings = F.normalize(self.clip.project(output.clip_pooled), dim=-1)
        if self.weighted and last.iou_logits is not None:
            weight = last.iou_logits.sigmoid()
        else:
            weight = torch.ones_like(last.embeddings[..., 0])
        return last.mask_logits, last.embeddings, clip_embeddings, weight


class _Classifier(nn.Module):
    """What both rules share; see ``possam.pictures.vocabulary.Vocabulary.score`` for the two."""

    def __init__(self, segmenter: Segmenter, options: InferenceOptions) -> None:
        super().__init__()
        self.possam, self.scale = segmenter.possam, float(segmenter.clip.logit_scale)
        self.options = options
        self.ensemble: Ensemble = load_part(ENSEMBLES, options.ensemble)

    def logits(self, names: Tensor, ldp: Tensor, clip: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Names (K, S, E) and embeddings (B, Q, E) -> (B, Q, K), void (B, Q, 1), CLIP's."""
        text: Any = _Names(names)
        own = self.possam.class_logits(ldp, text)
        return own[..., :-1], own[..., -1:], self.scale * text.similarity(clip)

    def presence(self, share: Tensor, objectness: Tensor) -> Tensor:
        """What exceeds ``object_threshold`` for a mask that competes (``MaskScores.kept``)."""
        if self.options.mask_filter == "objectness":
            return objectness
        best = share * objectness
        return torch.where(best >= 1 - objectness, best, torch.zeros_like(best))

    def combine(self, ldp: Tensor, clip: Tensor, seen: Tensor) -> Tensor:
        """Logits of both branches without void, (..., K) -> probabilities."""
        return self.ensemble(ldp.softmax(-1), clip.softmax(-1), seen=seen, options=self.options)


class _SharedClassifier(_Classifier):
    """All words in one softmax, as in the benchmarks: of a model that was trained on no words."""

    def forward(
        self, ldp: Tensor, clip: Tensor, weight: Tensor, words: Tensor, seen: Tensor
    ) -> tuple[Tensor, ...]:
        own, void, of_clip = self.logits(words, ldp, clip)
        probs = self.combine(own, of_clip, seen)
        objectness = 1 - torch.cat((own, void), -1).softmax(-1)[..., -1]
        share, label = probs.max(-1)
        presence, weight = self.presence(share, objectness), weight * objectness
        return label, share * weight, presence, probs * weight.unsqueeze(-1)


class _WordClassifier(_Classifier):
    """``possam.evaluation.words.classify_words``, with all words at once."""

    def forward(
        self,
        ldp: Tensor,
        clip: Tensor,
        weight: Tensor,
        words: Tensor,
        seen: Tensor,
        background: Tensor,
        rivals: Tensor,
    ) -> tuple[Tensor, ...]:
        own, void, own_clip = self.logits(words, ldp, clip)
        rest, _, rest_clip = self.logits(background, ldp, clip)
        known = torch.ones_like(rest[0, 0], dtype=torch.bool)
        share = self.combine(rest, rest_clip, known).amax(-1)
        empty = torch.cat((rest, void), -1).softmax(-1)[..., -1]

        def beside(mine: Tensor, others: Tensor) -> Tensor:
            """Each word, and its rivals: (B, Q, K) and (B, Q, C) -> (B, Q, K, 1 + C)."""
            those = torch.where(rivals, others.unsqueeze(-2), -torch.inf)
            return torch.cat((mine.unsqueeze(-1), those), -1)

        logits = beside(own, rest)
        alone = torch.cat((seen.unsqueeze(-1), torch.ones_like(rivals)), -1)
        probs = self.combine(logits, beside(own_clip, rest_clip), alone)
        voids = torch.cat((logits, void.unsqueeze(-2).expand(*own.shape, 1)), -1)
        void_beside = voids.softmax(-1)[..., -1]
        mine = probs[..., 0]
        found = mine * (1 - void_beside)
        best, place = (found * (mine >= probs[..., 1:].amax(-1))).max(-1)
        wins = best > 0

        def chosen(values: Tensor) -> Tensor:
            return values.gather(-1, place.unsqueeze(-1)).squeeze(-1)

        count = torch.ones_like(seen, dtype=torch.int64).sum()
        label = torch.where(wins, place, count)
        objectness = 1 - torch.where(wins, chosen(void_beside), empty)
        share = torch.where(wins, chosen(mine), share)
        presence = self.presence(share, objectness)
        return label, share * objectness * weight, presence, found * weight.unsqueeze(-1)


def export_onnx(model: Model, folder: Path, *, vocabulary: Vocabulary | None = None) -> None:
    """Write a model as a folder of ONNX graphs, with ``model.json`` that says how to call them.

    Args:
        model: on the CPU.
        folder: made, or taken the place of, when all is written.
        vocabulary: embedded words, which are written beside the graphs as ``vocabulary.npz``.

    Raises:
        InputError: ONNX is not installed, or the model has no parts to export.
    """
    segmenter, inference = model.segmenter, model.config.inference
    if isinstance(segmenter, TrainingFreeSegmenter):
        raise InputError(
            f"{model.name}: SAM's automatic masks are no graph; export a trained model"
        )
    if model.device.type != "cpu":
        raise InputError(f"{model.name}: is on {model.device}; load it on the cpu to export it")
    _check_installed()
    with atomic_directory(folder) as temporary, torch.no_grad():
        graphs = _export_all(model, temporary)
        content = {
            "format": FORMAT,
            "name": model.name,
            "synthetic": model.config.synthetic,
            "opset": OPSET,
            "graphs": graphs,
            "rule": "words" if model.training_vocabulary else "shared",
            "multiple": segmenter.features.multiple,
            "padding": list(segmenter.features.padding),
            "resolution": inference.resolution.model_dump(mode="json"),
            "object_threshold": inference.object_threshold,
            "overlap_threshold": inference.overlap_threshold,
        }
        write_json(temporary / DESCRIPTION, content)
        if vocabulary is not None:
            arrays: dict[str, Any] = {**vocabulary_arrays(vocabulary)}
            with (temporary / "vocabulary.npz").open("wb") as stream:
                np.savez(stream, **arrays)


def vocabulary_arrays(vocabulary: Vocabulary) -> dict[str, NDArray[Any]]:
    """A vocabulary as inputs of ``classifier.onnx``, with ``names`` (K) and ``is_thing`` (K).

    ``words`` (K, S, E) float32, ``seen`` (K) bool; of a model that was trained on words also
    ``background`` (C, S', E) and ``rivals`` (K, C) bool.
    """
    embedded = vocabulary.embedded
    arrays: dict[str, NDArray[Any]] = {
        "names": np.array([each.name for each in vocabulary.classes]),
        "is_thing": np.array(vocabulary.things),
        "words": _box(embedded.own),
        "seen": np.array(embedded.seen),
    }
    if vocabulary.seen is not None:
        rivals = np.zeros((len(embedded.words), len(embedded.background)), bool)
        for row, places in zip(rivals, embedded.rivals, strict=True):
            row[list(places)] = True
        arrays |= {"background": _box(embedded.known), "rivals": rivals}
    return arrays


def _box(rows: Sequence[Tensor]) -> NDArray[np.float32]:
    """The names (n, E) of each class as (K, S, E): a class of fewer names repeats its first."""
    most = max(map(len, rows))
    full = [torch.cat((own, own[:1].expand(most - len(own), -1))).detach() for own in rows]
    return torch.stack(full).cpu().numpy()


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"--onnx: the package {error.name} is not installed; pip install 'possam[onnx]'"
        ) from error


def _export_all(model: Model, folder: Path) -> dict[str, Any]:
    """Write the graphs; returns the names of the inputs and outputs of each."""
    segmenter, trained = model.segmenter, bool(model.training_vocabulary)
    sam, clip, unit = segmenter.features.sam, segmenter.clip, segmenter.features.multiple
    batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))

    def extent(stride: int) -> dict[int, Any]:
        """Sizes of a map of this stride (in pixels), as multiples of the smallest image's."""
        return {0: batch, 2: unit // stride * rows, 3: unit // stride * columns}

    example = torch.rand(2, 3, 3 * unit, 5 * unit) * 255
    written: dict[str, Any] = {}

    def write(
        name: str, module: nn.Module, inputs: dict[str, tuple[Tensor, Any]], outputs: Sequence[str]
    ) -> None:
        given: Any = tuple(tensor for tensor, _ in inputs.values())
        shapes: Any = tuple(sizes for _, sizes in inputs.values())
        if isinstance(module, _Decoder):  # its maps are one argument
            given, shapes = (given,), (shapes,)
        # Exported first: torch.onnx would try other ways of tracing after a failure.
        graph = torch.export.export(module.eval(), given, dynamic_shapes=shapes)
        program = torch.onnx.export(
            graph,
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
        )
        assert program is not None
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # where the exporting machine keeps its sources
        size = sum(tensor.nbytes for tensor in module.state_dict().values())
        program.save(folder / f"{name}.onnx", external_data=size > _EMBEDDED_BYTES)
        written[name] = {"inputs": list(inputs), "outputs": list(outputs)}

    maps: dict[str, tuple[Tensor, Any]] = {}
    images = {"images": (example, extent(1))}
    if sam is not None:
        assert isinstance(sam, nn.Module)
        maps["sam_map"] = (sam(example), extent(sam.stride))
        write("sam", sam, images, list(maps))
    towers = _ClipMaps(clip, stages=sam is None)
    names = ["clip_map"] if sam is not None else [f"clip_stage_{k}" for k in range(4)]
    strides = clip.stage_strides[-len(names) :]
    write("clip", towers, images, names)
    for name, found, stride in zip(names, towers(example), strides, strict=True):
        maps[name] = (found, extent(stride))
    decoder = _Decoder(segmenter, weighted=model.config.inference.iou_weighting)
    found = ("mask_logits", "ldp_embeddings", "clip_embeddings", "mask_weight")
    write("decoder", decoder, maps, found)

    def embeddings(count: int, names: int) -> Tensor:
        return F.normalize(torch.randn(count, names, clip.embed_dim), dim=-1)

    words, most = torch.export.Dim("words"), torch.export.Dim("names")
    masks = dict(zip(found[1:], decoder(tuple(one for one, _ in maps.values()))[1:], strict=True))
    arguments: dict[str, tuple[Tensor, Any]] = {
        **{name: (tensor, {0: batch}) for name, tensor in masks.items()},
        "words": (embeddings(3, 2), {0: words, 1: most}),
        "seen": (torch.tensor([True, False, False]), {0: words}),
    }
    classifier: nn.Module = _SharedClassifier(segmenter, model.config.inference)
    if trained:
        known, several = torch.export.Dim("background"), torch.export.Dim("background_names")
        arguments |= {
            "background": (embeddings(5, 4), {0: known, 1: several}),
            "rivals": (torch.rand(3, 5) > 0.5, {0: words, 1: known}),
        }
        classifier = _WordClassifier(segmenter, model.config.inference)
    outputs = ("label", "score", "presence", "word_scores")
    write("classifier", classifier, arguments, outputs)
    return written
