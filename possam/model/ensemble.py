"""Ensembles of the two classifications of a mask (paper, section 3.5, Algorithm 1, Table 7).

The weight ``w`` of the CLIP branch is ``alpha`` for seen and ``beta`` for unseen classes; 0 uses
only the LDP branch, 1 only the CLIP branch. ``registry.ENSEMBLES`` names the functions.

Shapes: K classes; leading dimensions are free.
"""

from typing import Protocol

import torch
from torch import Tensor

from possam.model.options import Confidence, InferenceOptions


class Ensemble(Protocol):
    """What every function of ``registry.ENSEMBLES`` takes and returns."""

    def __call__(
        self, p_ldp: Tensor, p_clip: Tensor, *, seen: Tensor, options: InferenceOptions
    ) -> Tensor:
        """Combine ``p_ldp`` and ``p_clip``, (..., K) without void, which sum to 1 over the classes.

        Args:
            seen: (K,) bool, True for classes with a training synonym.
            options: ``alpha`` and ``beta``, CLIP's weights, and ``mase_confidence``.

        Returns:
            (..., K) float32, summing to 1.
        """
        ...


def ldp_only(p_ldp: Tensor, p_clip: Tensor, *, seen: Tensor, options: InferenceOptions) -> Tensor:
    """The classification by the trained embeddings; see :class:`Ensemble`."""
    return p_ldp


def clip_only(p_ldp: Tensor, p_clip: Tensor, *, seen: Tensor, options: InferenceOptions) -> Tensor:
    """The classification by CLIP's pooled features; see :class:`Ensemble`."""
    return p_clip


def geometric_ensemble(
    p_ldp: Tensor, p_clip: Tensor, *, seen: Tensor, options: InferenceOptions
) -> Tensor:
    """Geometric mean with fixed weights: p_ldp^(1 - w) * p_clip^w; see :class:`Ensemble`."""
    return _geometric_mean(p_ldp, p_clip, seen, options, selective=False)


def mase(p_ldp: Tensor, p_clip: Tensor, *, seen: Tensor, options: InferenceOptions) -> Tensor:
    """Mask-aware selective ensembling: a geometric mean whose weights follow the confidences.

    The listing of Algorithm 1 is lost; this implements its description (see :func:`mase_weight`).
    IoU scores weigh masks against each other afterwards, in :mod:`possam.model.inference`.
    """
    return _geometric_mean(p_ldp, p_clip, seen, options, selective=True)


def mase_weight(p_ldp: Tensor, p_clip: Tensor, *, weight: Tensor, confidence: Confidence) -> Tensor:
    """CLIP's adapted weight w': its odds are those of ``weight`` times c_clip / c_ldp.

    With equal confidences w' is ``weight``; weights 0 and 1 never change. w' rises smoothly with
    CLIP's confidence and falls with LDP's. ``p_ldp``, ``p_clip`` (..., K) and ``weight`` (K,), all
    in 0..1 -> (..., K) float32 in 0..1.
    """
    return _adapt(weight.float(), _log(p_ldp), _log(p_clip), confidence)


def _geometric_mean(
    p_ldp: Tensor, p_clip: Tensor, seen: Tensor, options: InferenceOptions, *, selective: bool
) -> Tensor:
    """Normalised weighted mean in the log domain; ``selective``: confidences adapt the weights."""
    if options.alpha == options.beta and options.alpha in (0.0, 1.0):
        only = (p_ldp if options.alpha == 0.0 else p_clip).float()
        return only / only.sum(-1, keepdim=True)
    log_ldp, log_clip = _log(p_ldp), _log(p_clip)
    weight = torch.where(seen, options.alpha, options.beta).to(p_ldp.device, torch.float32)
    if selective:
        weight = _adapt(weight, log_ldp, log_clip, options.mase_confidence)
    return torch.lerp(log_ldp, log_clip, weight.expand_as(log_ldp)).softmax(-1)


def _adapt(weight: Tensor, log_ldp: Tensor, log_clip: Tensor, confidence: Confidence) -> Tensor:
    ratio = log_clip - log_ldp
    if confidence == "mask":
        ratio = log_clip.amax(-1, keepdim=True) - log_ldp.amax(-1, keepdim=True)
    return torch.sigmoid(torch.logit(weight) + ratio)


def _log(probabilities: Tensor) -> Tensor:
    """Logarithm with a floor: an underflowed probability must not veto the other branch by NaN."""
    return probabilities.float().clamp(min=torch.finfo(torch.float32).tiny).log()
