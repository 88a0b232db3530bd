"""One optimisation step, in any number of micro-batches and processes."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from possam.model.encoders.text import TextEmbeddings
from possam.model.possam import PosSAM
from possam.training.checkpoint import Checkpoint
from possam.training.distributed import TrainingProcess
from possam.training.losses import TERMS, Criterion, Losses
from possam.training.memory import checkpoint_activations
from possam.training.options import LossOptions, TrainingOptions
from possam.training.schedule import build_optimizer, learning_rate
from possam.training.sharding import BatchSharding, TreeSum, sum_over_ranks
from possam.training.targets import Batch, derive_seed

LOGGED = ("loss", "grad_norm", *TERMS, *(f"{name}_last" for name in TERMS))
"""Names of the values that a step returns: terms of all decoder outputs, and of only the last."""


class Trainer:
    """One process's part of each optimisation step, with the model and the optimiser."""

    def __init__(
        self,
        *,
        model: PosSAM,
        text: TextEmbeddings,
        training: TrainingOptions,
        loss: LossOptions,
        seed: int,
        process: TrainingProcess,
    ) -> None:
        self.model = model.to(process.device).train()
        self.text = text.to(process.device)
        self.training, self.seed = training, seed
        self.process, self.sharding = process, BatchSharding.of(training, process)
        self.criterion = Criterion(loss)
        self.optimizer = build_optimizer(model, training)
        self._reached: list[nn.Parameter] = []
        if training.activation_checkpointing:
            checkpoint_activations(model)

    def step(self, step: int, batches: Sequence[Batch]) -> tuple[bool, list[float]]:
        """One optimisation step on the micro-batches of this and of the other processes.

        Returns:
            Whether loss and gradient were finite (if not, nothing was changed), and the values of
            :data:`LOGGED`; both are the same in all processes.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.training)
        counts = self.process.gather(
            [len(target.labels) for batch in batches for target in batch.targets]
        )
        own = TreeSum()
        for index, batch in zip(self.sharding.own, batches, strict=True):
            number = self.sharding.number(step, index)
            own.add(index, self._gradients(number, batch.to(self.process.device), counts))
        *gradients, values = sum_over_ranks(own, sharding=self.sharding, process=self.process)
        for parameter, gradient in zip(self._reached, gradients, strict=True):
            parameter.grad = gradient
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip_norm)
        logged = torch.cat([values[:1], norm.view(1), values[1:]]).tolist()
        finite = all(map(math.isfinite, logged))
        if finite:
            self.optimizer.step()
        return finite, logged

    def _gradients(self, number: int, batch: Batch, counts: Sequence[int]) -> list[Tensor]:
        """Gradients of micro-batch ``number``'s share of the loss, and its logged values."""
        self.optimizer.zero_grad(set_to_none=True)
        with self._random_numbers(number):
            losses = self.losses(number, batch, counts)
            losses.total.backward()
        # some models have parameters that no loss reaches; which ones is the same in every step
        self._reached = [p for p in self.model.parameters() if p.grad is not None]
        gradients = [p.grad for p in self._reached if p.grad is not None]
        terms = [losses.terms[name] for name in TERMS]
        values = [losses.total.detach(), *(t.sum() for t in terms), *(t[-1] for t in terms)]
        return [*gradients, torch.stack(values)]

    def losses(self, number: int, batch: Batch, counts: Sequence[int]) -> Losses:
        """Forward pass and criterion: every decoder output is supervised.

        Args:
            number: the micro-batch's, over the whole run; decides its random points.
            counts: targets per image of the whole step, over all micro-batches and processes.
        """
        bf16 = self.training.precision == "bf16"
        device = self.process.device
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            output = self.model(batch.backbone, batch.clip_features, all_layers=True)
        embeddings = torch.stack([layer.embeddings.float() for layer in output.layers])
        quality = [layer.iou_logits for layer in output.layers if layer.iou_logits is not None]
        generator = torch.Generator(device)
        generator.manual_seed(derive_seed("points", self.seed, number))
        return self.criterion(
            mask_logits=output.mask_logits,
            class_logits=self.model.class_logits(embeddings, self.text),
            iou_logits=torch.stack(quality) if quality else None,
            targets=batch.targets,
            counts=counts,
            generator=generator,
        )

    @contextlib.contextmanager
    def _random_numbers(self, number: int) -> Iterator[None]:
        """Seed the global generator, for layers that draw from it, by the micro-batch."""
        device = self.process.device
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(derive_seed("layers", self.seed, number))
            yield

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to the weights and the optimiser state of ``checkpoint``."""
        self.model.load_state_dict(checkpoint.weights)
        self.optimizer.load_state_dict(checkpoint.optimizer)
