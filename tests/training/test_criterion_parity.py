"""The criterion against plain loops in float64 and against transformers' ``Mask2FormerLoss``."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from possam.training import losses as module
from possam.training.losses import TERMS, Criterion, Losses, uncertain_points
from possam.training.targets import Target
from tests.support import naive_criterion as naive
from tests.support.lazy import LazyModule
from tests.support.parity_report import Parity
from tests.support.training_fakes import loss_params

reference = LazyModule("transformers.models.mask2former.modeling_mask2former")

QUERIES, CLASSES, POINTS = 5, 3, 16
COUNTS = {
    "several images of different counts": (3, 1, 2),
    "one target": (1,),
    "an image without targets": (2, 0),
    "more targets than queries": (7, 1),
    "as many targets as queries": (5,),
    "nothing but void": (0, 0),
}
CASES = pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS.keys())
VALUE, GRADIENT = 1e-5, 1e-4


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_case(counts: tuple[int, ...], *, layers: int, seed: int = 0) -> dict[str, Any]:
    source = generator(seed)
    shape = (layers, len(counts), QUERIES)
    return {
        "mask_logits": [
            (2 * torch.randn(*shape[1:], 8, 6, generator=source)).requires_grad_()
            for _ in range(layers)
        ],
        "class_logits": torch.randn(*shape, CLASSES + 1, generator=source).requires_grad_(),
        "iou_logits": torch.randn(*shape, generator=source).requires_grad_(),
        "targets": [
            Target(
                torch.rand(count, 16, 12, generator=source) > 0.6,
                torch.randint(CLASSES, (count,), generator=source),
            )
            for count in counts
        ],
    }


def double(case: dict[str, Any]) -> dict[str, Any]:
    """The same numbers in float64, as new leaves."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().double().requires_grad_()

    return {
        "mask_logits": [leaf(layer) for layer in case["mask_logits"]],
        "class_logits": leaf(case["class_logits"]),
        "iou_logits": leaf(case["iou_logits"]),
        "targets": case["targets"],
    }


def run(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> tuple[Losses, Tensor, Tensor]:
    """Our losses after their backward pass, the points of the matching and of the losses."""
    drawn: list[Tensor] = []

    def recorded(*arguments: Any, **options: Any) -> Tensor:
        drawn.append(uncertain_points(*arguments, **options))
        return drawn[-1]

    with monkeypatch.context() as patch:
        patch.setattr(module, "uncertain_points", recorded)
        found = Criterion(loss_params())(**case, generator=generator())
    found.total.backward()
    # The matching draws first.
    matching = torch.rand(len(case["targets"]), POINTS, 2, generator=generator())
    return found, matching, drawn[0]


def pairs_of(found: Losses) -> list[naive.Pair]:
    columns = (found.matches.layer, found.matches.image, found.matches.query, found.matches.target)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def compare_gradients(
    parity: Parity, case: dict[str, Any], other: dict[str, Any], names: tuple[str, ...]
) -> None:
    """One case a name; what nothing depends on has the gradient 0."""
    for name in names:
        mine, yours = (
            torch.stack(
                [
                    torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
                    for leaf in (table[name] if name == "mask_logits" else [table[name]])
                ]
            )
            for table in (case, other)
        )
        parity.close(mine, yours, bound=GRADIENT)


@pytest.mark.parity("losses")
@CASES
@pytest.mark.parametrize("layers", [1, 3])
def test_values_and_gradients_equal_plain_loops(
    counts: tuple[int, ...], layers: int, parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = random_case(counts, layers=layers)
    found, matching, points = run(case, monkeypatch)
    other = double(case)
    pairs = naive.match(other, matching, loss_params())
    parity.equal(pairs_of(found), pairs)
    values = naive.terms(other, pairs, points, loss_params())
    for name in TERMS:
        parity.close(found.terms[name], torch.stack(values[name]), bound=VALUE)
    total = naive.weighted(values, loss_params())
    parity.close(found.total, total, bound=VALUE)
    total.backward()
    compare_gradients(parity, case, other, ("mask_logits", "class_logits", "iou_logits"))


class Draws:
    """Stands for ``torch.rand`` in the reference: the numbers that ours drew, layer by layer.

    The reference draws for its last layer first. An image's points for matching are the same in
    all layers; candidates and uniform points follow the pairs of the layer.
    """

    def __init__(self, losses: Losses, images: int, layers: int) -> None:
        source = generator()
        self.matching = torch.rand(images, POINTS, 2, generator=source)
        total, certain = len(losses.matches), int(0.75 * POINTS)
        candidates = torch.rand(total, 3 * POINTS, 2, generator=source)
        uniform = torch.rand(total, POINTS - certain, 2, generator=source)
        self.queue = []
        for layer in [layers - 1, *range(layers - 1)]:
            own = losses.matches.layer == layer
            self.queue += [*self.matching.unsqueeze(1), candidates[own], uniform[own]]

    def __call__(self, *shape: int, device: Any = None) -> Tensor:
        values = self.queue.pop(0)
        assert values.shape == shape
        return values


def their_loss() -> Any:
    config = SimpleNamespace(
        num_labels=CLASSES,
        no_object_weight=0.1,
        train_num_points=POINTS,
        oversample_ratio=3.0,
        importance_sample_ratio=0.75,
        class_weight=2.0,
        dice_weight=5.0,
        mask_weight=5.0,
    )
    weights = {"loss_cross_entropy": 2.0, "loss_mask": 5.0, "loss_dice": 5.0}
    return SimpleNamespace(
        criterion=reference.Mask2FormerLoss(config, weights), weight_dict=weights
    )


@pytest.mark.parity("losses")
@CASES
@pytest.mark.parametrize("layers", [1, 3])
def test_values_and_gradients_equal_the_reference(
    counts: tuple[int, ...], layers: int, parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of theirs: matching, important points, every layer, their weighted sum."""
    case = {**random_case(counts, layers=layers), "iou_logits": None}
    found, _, _ = run(case, monkeypatch)
    masks = [layer.detach().clone().requires_grad_() for layer in case["mask_logits"]]
    scores = case["class_logits"].detach().clone().requires_grad_()
    theirs = their_loss()
    draws = Draws(found, len(counts), layers)
    with monkeypatch.context() as patch:
        patch.setattr(reference.torch, "rand", draws)
        values = theirs.criterion(
            masks[-1],
            scores[-1],
            [target.masks.float() for target in case["targets"]],
            [target.labels for target in case["targets"]],
            [
                {"masks_queries_logits": mask, "class_queries_logits": score}
                for mask, score in zip(masks[:-1], scores[:-1], strict=True)
            ],
        )
    assert not draws.queue
    order = [f"_{layer}" for layer in range(layers - 1)] + [""]
    for name, key in (("class", "cross_entropy"), ("bce", "mask"), ("dice", "dice")):
        expected = torch.stack([values[f"loss_{key}{suffix}"] for suffix in order])
        parity.close(found.terms[name], expected, bound=VALUE)
    total = sum(
        weight * value
        for key, weight in theirs.weight_dict.items()
        for name, value in values.items()
        if name.startswith(key)
    )
    parity.close(found.total, total, bound=VALUE)
    total.backward()
    other = {"mask_logits": masks, "class_logits": scores}
    compare_gradients(parity, case, other, ("mask_logits", "class_logits"))


@pytest.mark.parity("losses")
def test_important_points_equal_the_reference_on_the_same_candidates(
    parity: Parity, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(3, 6, 6, generator=generator(2))
    ours = uncertain_points(logits, loss_params(points=20), generator=generator(4))
    source, rand = generator(4), torch.rand
    loss = their_loss().criterion
    with monkeypatch.context() as patch:
        patch.setattr(
            reference.torch, "rand", lambda *shape, device=None: rand(*shape, generator=source)
        )
        theirs = loss.sample_points_using_uncertainty(
            logits[:, None], loss.calculate_uncertainty, 20, 3.0, 0.75
        )
    # the order of the uncertain ones is free
    parity.equal(ours[:, :15].sort(1).values, theirs[:, :15].sort(1).values)
    parity.equal(ours[:, 15:], theirs[:, 15:])
