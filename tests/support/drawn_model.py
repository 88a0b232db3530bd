"""A model over the small towers with a head of random weights: what it finds means nothing."""

from pathlib import Path

from possam.model.encoders.clip import load_clip
from possam.model.encoders.sam import SamEncoder, load_sam
from possam.model.encoders.widths import tower_widths
from possam.model.options import CLIP
from possam.model.possam import build_possam
from possam.params.project import Project
from possam.runtime.files import sha256_file
from possam.training.checkpoint import WeightsMetadata, save_trained
from tests.support.pages import REPOSITORY

TOWERS = REPOSITORY / "data/towers"


def drawn_weights(path: Path) -> Path:
    """Write the weights of such a model, as a training of the mini scale writes them."""
    sam, weights = TOWERS / "synthetic_sam_b.pth", TOWERS / "synthetic_clip.safetensors"
    tower = SamEncoder(load_sam(sam, architecture="synthetic_b").image_encoder)
    clip = load_clip(config=TOWERS / "synthetic_clip.json", checkpoint=weights)
    options, widths = Project("mini").scale.model, tower_widths(sam=tower, clip=clip)
    metadata = WeightsMetadata(
        model_kwargs={**widths, **options.model_dump()},
        identity={"run": "drawn"},
        frozen={"sam": sha256_file(sam), CLIP: sha256_file(weights)},
        vocabulary=[["green star"]],
    )
    save_trained(path, build_possam(options, **widths, seed=1), metadata, step=0)
    return path
