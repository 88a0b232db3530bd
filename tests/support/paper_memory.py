"""What a training at the paper's sizes takes of a GPU's memory, without a GPU.

    python -m tests.support.paper_memory [RUN ...] [--segments 12 60 200]

One process of every run of ``params/runs.yaml`` takes training steps on the fake device of
:mod:`tests.support.fake_cuda`: the frozen towers encode a micro-batch of 1024 x 1024 crops, then
forward pass, matching, losses, backward pass and AdamW. Types, devices and synchronisations are
checked on the way. Prints a table in Markdown.
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from possam.model.encoders.clip import FrozenClip, build_open_clip
from possam.model.encoders.sam import SamEncoder, build_sam, find_architecture
from possam.model.encoders.text import TextEmbeddings
from possam.model.possam import PosSAM, build_possam
from possam.model.segmenter import TowerFeatures
from possam.params.project import Project
from possam.params.scale import RunParams
from possam.training.distributed import TrainingProcess
from possam.training.memory import hold_in_bfloat16
from possam.training.targets import Batch, Target
from possam.training.trainer import Trainer
from tests.support.fake_cuda import CUDA, FakeCuda, FakeCudaError, Sync

SEGMENTS = (12, 60, 200)
"""Per image: about what COCO has on average, a crowded image, and a very crowded one."""

CLASSES = {"coco": 133, "ade20k": 150}
NAMES_PER_CLASS = 2

EXPECTED_SYNCS = {
    ("to device", "possam/model/ops/triton_sampling.py:_sizes"): "sizes of the levels, once",
    ("to host", "possam/training/matching.py:assign"): "costs of all pairs, for the assignment",
    ("to host", "possam/training/trainer.py:step"): "the logged values",
}
"""Where encoding and training a micro-batch may wait for the device, and for what."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One training step.

    Attributes:
        resting: bytes between steps: trained weights, AdamW's state, frozen towers.
        peak: bytes allocated at most; place: where in the step that was.
        syncs: how often which place made the host wait.
        parameters: trained numbers.
    """

    resting: int
    peak: int
    place: str
    syncs: dict[Sync, int]
    parameters: int


class PaperRun:
    """A run's trainer and towers on ``device``, at the sizes of its scale."""

    def __init__(self, device: FakeCuda, project: Project, name: str) -> None:
        self.device, self.run = device, project.run(name)
        self.steps = 0
        with torch.device("meta"):
            self.towers = build_towers(project, self.run)
            self.model = build_model(self.towers, self.run)
        for network in (self.towers, self.model):
            network.to_empty(device=CUDA)
        self.trainer = _trainer(self.model, self.run)
        self.model.register_forward_hook(_check_output)
        device.name_modules(self.model)
        self._create_optimizer_state()
        self.device.reset()
        self.features = self._encode()
        self.encoding_peak, self.encoding_syncs = device.peak, Counter(device.syncs)
        self.trainer.optimizer.zero_grad(set_to_none=True)

    def _create_optimizer_state(self) -> None:
        """What AdamW keeps from its first step on; the gradients stay until the next step."""
        self.resting = self.device.allocated
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        gradients = self.device.allocated - self.resting
        self.trainer.optimizer.step()
        self.resting = self.device.allocated - gradients

    def _encode(self) -> tuple[tuple[Tensor, ...], Tensor]:
        """A micro-batch of images in the towers, as ``LiveSource`` has it encoded."""
        size = self.run.training.augmentation.size
        shape = (self.run.training.micro_batch, 3, size, size)
        backbone, clip = self.towers(torch.zeros(shape, dtype=torch.uint8, device=CUDA).float())
        return tuple(level.float() for level in backbone), clip.float()

    def step(self, counts: Sequence[int]) -> Measured:
        """Train one micro-batch of images with ``counts`` segments, and check it.

        Raises:
            FakeCudaError: something that CUDA refuses, a wrong type or device, or a
                synchronisation that nobody expects.
        """
        self.device.reset()
        size = self.run.training.augmentation.size
        backbone, clip = self.features
        targets = [_target(count, size) for count in counts]
        batch = Batch(backbone=backbone, clip_features=clip, targets=targets)
        self.trainer.step(self.steps, [batch])
        self.steps += 1
        self._check_state()
        syncs = self.encoding_syncs + self.device.syncs
        check_syncs(syncs)
        return Measured(
            resting=self.resting,
            peak=max(self.encoding_peak, self.device.peak),
            place=self.device.peak_place,
            syncs=syncs,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
        )

    def _check_state(self) -> None:
        """Weights, gradients and AdamW's state are float32 on the device."""
        for name, parameter in self.model.named_parameters():
            state = self.trainer.optimizer.state[parameter]
            for kind, tensor in {"weight": parameter, "gradient": parameter.grad, **state}.items():
                if tensor is not None:
                    _check(f"{kind} of {name}", tensor, torch.float32)


def check_syncs(syncs: Iterable[Sync]) -> None:
    """Raise a FakeCudaError for the first that is not in :data:`EXPECTED_SYNCS`."""
    for sync in syncs:
        if (sync.kind, sync.place) not in EXPECTED_SYNCS:
            raise FakeCudaError(f"{sync.place}: {sync.operator} waits for the device")


def _check(what: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or tensor.device != CUDA:
        raise FakeCudaError(f"{what}: {tensor.dtype} on {tensor.device}, not {dtype} on {CUDA}")


def _check_output(model: nn.Module, inputs: Any, output: Any) -> None:
    """bfloat16 where autocast reaches, float32 for what is compared with text."""
    _check("mask logits", output.mask_logits, torch.bfloat16)
    _check("pooled CLIP features", output.clip_pooled, torch.float32)
    for layer in output.layers:
        _check("embeddings", layer.embeddings, torch.float32)
        if layer.iou_logits is not None:
            _check("IoU logits", layer.iou_logits, torch.bfloat16)


def build_towers(project: Project, run: RunParams) -> TowerFeatures:
    """The frozen towers as a training holds them; CLIP's text tower is there, too."""
    towers, sam = project.scale.towers, None
    network, tokenizer, size = build_open_clip(towers.clip.config)
    clip = FrozenClip(model=network, tokenizer=tokenizer, image_size=size)
    if run.sam is not None:
        architecture = find_architecture(towers.sam[run.sam].architecture)
        sam = SamEncoder(build_sam(architecture).image_encoder)
    features = TowerFeatures(
        sam=sam, clip=clip, precision=towers.precision, padding=run.model.padding
    )
    if towers.precision == "bf16":
        hold_in_bfloat16(*([] if sam is None else [sam]), clip.model.visual)
    return features


def build_model(towers: TowerFeatures, run: RunParams) -> PosSAM:
    """The trainable part over ``towers``."""
    clip: Any = towers.clip
    sam: Any = towers.sam
    return build_possam(
        run.model,
        backbone_channels=list(clip.stage_channels) if sam is None else [sam.channels],
        clip_channels=clip.dense_channels,
        embed_dim=clip.embed_dim,
        seed=run.seed,
    )


def _trainer(model: PosSAM, run: RunParams) -> Trainer:
    """One process with one micro-batch per step, as each of eight has."""
    classes, training = CLASSES[run.train], run.training
    index = torch.arange(classes).repeat_interleave(NAMES_PER_CLASS)
    names = torch.zeros(len(index), model.void_embed.shape[-1])
    return Trainer(
        model=model,
        text=TextEmbeddings(names, index, classes),
        training=training.model_copy(update={"batch_size": training.micro_batch}),
        loss=run.loss,
        seed=run.seed,
        process=TrainingProcess(device=CUDA),
    )


def _target(count: int, size: int) -> Target:
    return Target(
        masks=torch.zeros(count, size, size, dtype=torch.bool, device=CUDA),
        labels=torch.zeros(count, dtype=torch.int64, device=CUDA),
    )


def measure(
    project: Project, names: Sequence[str], segments: Sequence[int]
) -> Iterator[tuple[str, list[Measured]]]:
    """Each run's name, and a step with each number of segments in every image."""
    for name in names:
        with FakeCuda() as device:
            run = PaperRun(device, project, name)
            images = run.run.training.micro_batch
            yield name, [run.step([count] * images) for count in segments]


def gib(size: int) -> str:
    """Bytes as GiB."""
    return f"{size / 2**30:.1f}"


def row(name: str, steps: Sequence[Measured]) -> str:
    """A line of the table."""
    first = steps[0]
    cells = [f"`{name}`", f"{first.parameters / 1e6:.1f}", gib(first.resting)]
    return f"| {' | '.join([*cells, *(gib(step.peak) for step in steps)])} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, where each peak lies, and the synchronisations."""
    parser = argparse.ArgumentParser(description="Peak memory of the paper's trainings on a GPU.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="default: all")
    parser.add_argument("--segments", nargs="+", type=int, default=SEGMENTS, help="per image")
    parser.add_argument("--scale", default="paper", choices=("paper", "lab"))
    options = parser.parse_args(arguments)
    project = Project(options.scale)
    names = options.runs or list(project.runs)
    if unknown := set(names) - set(project.runs):
        parser.error(f"unknown run {min(unknown)}; choose from {', '.join(project.runs)}")
    started = time.monotonic()
    print("| run | trained, million | resting, GiB |", end="")
    print(*(f" {count} segments |" for count in options.segments), sep="")
    print("|" + "---|" * (3 + len(options.segments)), flush=True)
    places: dict[str, list[str]] = {}
    syncs: dict[tuple[str, str], set[int]] = {}
    for name, steps in measure(project, names, options.segments):
        print(row(name, steps), flush=True)
        places.setdefault(steps[-1].place, []).append(name)
        for sync, times in steps[-1].syncs.items():
            syncs.setdefault((sync.kind, sync.place), set()).add(times)
    print(f"\nWhere the peak lies with {options.segments[-1]} segments per image:\n")
    for place, found in places.items():
        print(f"- {place}: {', '.join(found)}")
    print("\n| where the host waits | for what | copied | times per micro-batch |")
    print("|---|---|---|---|")
    for (kind, place), counts in sorted(syncs.items()):
        times = ", ".join(map(str, sorted(counts)))
        print(f"| `{place}` | {EXPECTED_SYNCS[kind, place]} | {kind} | {times} |")
    print(f"\n{time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
