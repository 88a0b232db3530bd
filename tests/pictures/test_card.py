"""What a model's card claims."""

import pytest
import yaml

from possam.pictures.card import Figure, model_card
from possam.pictures.config import read_config
from possam.pictures.files import MODELS


@pytest.mark.parametrize("synthetic", [True, False])
def test_only_weights_of_the_synthetic_world_have_this_project_s_licence(synthetic: bool) -> None:
    config = read_config(MODELS / "possam_b_coco")
    card = model_card(
        config.model_copy(update={"synthetic": synthetic}),
        identity="a" * 64,
        step=1,
        vocabulary=[["cat"]],
        figures=[Figure("COCO -> ADE20K", "PQ", 26.5, 25.0, 28.0)],
    )
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == ("apache-2.0" if synthetic else "other")
    assert ("synthetic" in header["tags"]) == synthetic == ("Apache-2.0 for these" in card)
    assert "| COCO -> ADE20K | PQ | 26.5 | [25.0, 28.0] |" in card
