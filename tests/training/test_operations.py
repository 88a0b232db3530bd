"""Operations per image that plans count with are those of the networks at the paper's sizes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from possam.params.plan import DECODERS, load_plan, tower_key
from possam.params.project import Project
from tests.support.fake_cuda import CUDA, FakeCuda
from tests.support.paper_memory import build_model, build_towers

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_operations_of_plans_are_counted(size: str) -> None:
    project = Project("paper")
    run = project.run(f"possam_{size}_coco")
    with torch.device("meta"):
        towers = build_towers(project, run)
        model = build_model(towers, run)
    with FakeCuda(), torch.no_grad():
        for network in (towers, model):
            network.to_empty(device=CUDA).requires_grad_(False)
        with FlopCounterMode(display=False) as encoding:
            backbone, clip = towers(torch.zeros(1, 3, 1024, 1024, device=CUDA))
        with FlopCounterMode(display=False) as decoding:
            model(tuple(level.float() for level in backbone), clip.float(), all_layers=True)
    counted = load_plan(project)[1].operations
    own = counted[tower_key(project, size)] + counted[tower_key(project, None)]
    assert own * 1e12 == pytest.approx(encoding.get_total_flops(), rel=0.01)
    assert counted[DECODERS] * 1e12 == pytest.approx(decoding.get_total_flops(), rel=0.01)
