"""The parts of the model that come in several kinds: the names an option may give, and their code.

A new pooling is a class and one line here. An entry is written ``module:name``, so that reading
parameters imports no PyTorch, and a training's code hash covers only the kinds that it uses.
"""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from possam.runtime.errors import InputError

PYRAMIDS = {
    "sam": {
        "fpn": "possam.model.pyramid:SimplePyramid",
        "resample": "possam.model.pyramid:ResampledPyramid",
    },
    "clip": {"stages": "possam.model.baselines.fcclip:StagePyramid"},
}
"""For each backbone, the classes that make four scales of its maps: see ``pyramid.Pyramid``."""

DECODERS = {
    "mask2former": "possam.model.region_decoder:Mask2FormerDecoder",
    "two_way": "possam.model.baselines.two_way:TwoWayDecoder",
}
"""Classes that find regions in the backbone's maps: see ``region_decoder.RegionDecoder``."""

POOLINGS = {
    "ldp": "possam.model.pooling:LocalDiscriminativePooling",
    "cross_attention": "possam.model.pooling:CrossAttentionPooling",
    "region": "possam.model.pooling:RegionOnlyPooling",
    "clip": "possam.model.pooling:ClipOnlyPooling",
    "fcclip": "possam.model.baselines.fcclip:FcclipHead",
}
"""Classes that embed each mask's pooled features: see ``pooling.RegionPooling``."""

ENSEMBLES = {
    "mase": "possam.model.ensemble:mase",
    "geometric": "possam.model.ensemble:geometric_ensemble",
    "ldp": "possam.model.ensemble:ldp_only",
    "clip": "possam.model.ensemble:clip_only",
}
"""Functions that combine the two classifications of a mask: see ``ensemble.Ensemble``."""


def load_part(kinds: Mapping[str, str], name: str | None) -> Any:
    """The class or function called ``name``, or an InputError that lists the valid names."""
    if name is None or name not in kinds:
        raise InputError(f"unknown part {name!r}; valid choices: {', '.join(kinds)}")
    module, _, attribute = kinds[name].partition(":")
    return getattr(import_module(module), attribute)


def module_of(kinds: Mapping[str, str], name: str) -> str:
    """The dotted name of the module in which the part called ``name`` is written."""
    return kinds[name].partition(":")[0]
