"""The device that is not there: what it reports, and one training of the paper on it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from possam.params.project import Project
from possam.training import losses
from possam.training.distributed import TrainingProcess
from possam.training.targets import Batch, Target
from possam.training.trainer import Trainer
from tests.support.fake_cuda import BLOCK, CUDA, FakeCuda, FakeCudaError, run_backward
from tests.support.model_fakes import TWO_WAY
from tests.support.paper_memory import SEGMENTS, PaperRun, check_syncs, main, measure, row
from tests.support.training_fakes import loss_params, possam, text_embeddings, training_params

MIB = 2**20
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def device() -> Iterator[FakeCuda]:
    with FakeCuda() as device:
        yield device


def cuda(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device=CUDA)


class Blend(nn.Module):
    """Attention to two tokens as a blend: under CUDA's autocast the sum is float32."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.proj(x).split(1, dim=-2)
        score = (first * (second - first)).sum(-1, keepdim=True)
        return torch.lerp(first, second, score.sigmoid())


class Pool(nn.Module):
    def forward(self, masks: Tensor) -> Tensor:
        return F.avg_pool2d(masks, 4)


class Head(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


def run(device: FakeCuda, part: nn.Module, *shape: int) -> Tensor:
    model = Head(part).to(CUDA)
    device.name_modules(model)
    with torch.autocast("cuda", torch.bfloat16):
        return model(cuda(*shape))


def test_two_types_in_one_operator_are_reported_with_module_and_line() -> None:
    with (
        pytest.raises(FakeCudaError, match=r"test_fake_cuda.py:\d+, in part \(Blend\): .*lerp"),
        FakeCuda() as device,
    ):
        run(device, Blend(), 3, 2, 8)


@pytest.mark.parametrize(
    "mix",
    [
        lambda a, b: a @ b,
        lambda a, b: torch.addmm(b, a, a),
        lambda a, b: F.linear(a, b),
        lambda a, b: F.conv2d(a.view(1, 1, 4, 4), b.view(1, 1, 4, 4)),
        lambda a, b: a.index_put((torch.zeros(4, dtype=torch.int64, device=CUDA),), b),
        lambda a, b: a.index_add(0, torch.zeros(4, dtype=torch.int64, device=CUDA), b),
    ],
)
def test_operators_that_refuse_two_types(mix: Callable[[Tensor, Tensor], Tensor]) -> None:
    with pytest.raises(FakeCudaError), FakeCuda():
        mix(cuda(4, 4, dtype=torch.bfloat16), cuda(4, 4))


def test_a_batch_without_targets_that_a_kernel_refuses_is_reported() -> None:
    with (
        pytest.raises(FakeCudaError, match=r"in part \(Pool\): aten.avg_pool2d"),
        FakeCuda() as device,
    ):
        run(device, Pool(), 2, 0, 16, 16)


def test_two_devices_are_reported() -> None:
    with pytest.raises(FakeCudaError, match=r"aten.add.*cpu"), FakeCuda():
        cuda(3) + torch.ones(3)


def test_autocast_is_cuda_s(device: FakeCuda) -> None:
    half = cuda(4, 4, dtype=torch.bfloat16)
    with torch.autocast("cuda", torch.bfloat16):
        assert (cuda(4, 4) @ cuda(4, 4)).dtype == torch.bfloat16
        assert F.conv2d(cuda(1, 1, 4, 4), cuda(1, 1, 3, 3)).dtype == torch.bfloat16
        assert half.sum(-1).dtype == half.softmax(-1).dtype == torch.float32
        assert F.layer_norm(half, (4,)).dtype == torch.float32
        assert F.scaled_dot_product_attention(*[half.view(1, 1, 4, 4)] * 3).dtype == torch.bfloat16
        assert (half + cuda(4, 4)).dtype == torch.float32
    assert (cuda(4, 4) @ cuda(4, 4)).dtype == torch.float32


@pytest.mark.parametrize(
    ("kind", "wait"),
    [
        ("scalar read", lambda x: x.sum().item()),
        ("scalar read", lambda x: float(x.sum())),
        ("scalar read", lambda x: bool((x > 0).any())),
        ("scalar read", lambda x: torch.equal(x, x)),
        ("to host", lambda x: x.tolist()),
        ("to host", lambda x: x.cpu().numpy()),
        ("to host", lambda x: torch.empty(4).copy_(x)),
        ("size read", lambda x: x.nonzero()),
        ("size read", lambda x: x[x > 0]),
        ("size read", lambda x: x.masked_select(x > 0)),
        ("to device", lambda x: torch.ones(4).to(CUDA)),
        ("to device", lambda x: torch.tensor([1.0, 2.0], device=CUDA)),
    ],
)
def test_synchronisations_are_counted(
    device: FakeCuda, kind: str, wait: Callable[[Tensor], object]
) -> None:
    x = cuda(4)
    device.reset()
    wait(x)
    wait(x)
    ((sync, times),) = device.syncs.items()
    assert (sync.kind, times) == (kind, 2)
    assert sync.place == "tests/training/test_fake_cuda.py:<lambda>"


def test_what_does_not_wait_is_not_counted(device: FakeCuda) -> None:
    x = cuda(4)
    x[x > 0] = 1.0
    torch.where(x > 0, x, 1.0).clamp(min=0.5).to(torch.bfloat16).sum()
    x[torch.zeros(2, dtype=torch.int64, device=CUDA)] += 1
    assert not device.syncs


def test_numbers_on_the_host_are_real(device: FakeCuda) -> None:
    assert (torch.arange(3) + 1).tolist() == [1, 2, 3]
    assert cuda(2, 2).cpu().numpy().tolist() == [[0, 0], [0, 0]]


def test_memory_is_what_storages_take(device: FakeCuda) -> None:
    x = cuda(256, 1024)  # 1 MiB
    view = x.view(-1)[5:]
    assert device.allocated == device.peak == MIB
    y = x + 1
    del y
    assert (device.allocated, device.peak) == (MIB, 2 * MIB)
    assert "test_fake_cuda.py" in device.peak_place
    small = cuda(1)
    assert device.allocated == MIB + BLOCK
    del x
    assert device.allocated == MIB + BLOCK
    del view, small
    assert device.allocated == 0
    device.reset()
    assert device.peak == 0


def test_the_backward_pass_frees_what_it_has_used(device: FakeCuda) -> None:
    x = cuda(256, 1024).requires_grad_()
    y = x
    for _ in range(8):
        y = y.tanh()  # saves its result
    loss = y.sum()
    del y
    assert device.allocated == 9 * MIB + BLOCK
    loss.backward()
    assert x.grad is not None and x.grad.shape == x.shape
    assert device.allocated == 2 * MIB + BLOCK
    assert device.peak <= 11 * MIB + 4 * BLOCK


@pytest.mark.parametrize("changes", [{}, {"pooling": "cross_attention"}, TWO_WAY])
def test_the_backward_pass_is_autograd_s(changes: dict[str, object]) -> None:
    """On a CPU, where there are numbers."""
    model = possam(**changes)
    inputs = [torch.randn(2, 4, 4, 4)], torch.randn(2, 6, 4, 4)

    def loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output = model(*inputs, all_layers=True)
        parts = [output.mask_logits.float().square().mean()]
        parts += [layer.embeddings.square().mean(0).sum() for layer in output.layers]
        return torch.stack(parts).sum()

    loss().backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    names = list(run_backward(loss()))
    assert len(names) > 100
    for name, parameter in model.named_parameters():
        if expected[name] is None:
            assert parameter.grad is None
        else:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def documented(name: str) -> str:
    """The line of a run in docs/memory.md."""
    lines = (REPOSITORY / "docs/memory.md").read_text().splitlines()
    return next(line for line in lines if line.startswith(f"| `{name}` |"))


def test_a_training_of_the_paper_on_the_device() -> None:
    """Types, devices and synchronisations are checked by the step itself."""
    with FakeCuda() as device:
        run = PaperRun(device, Project("paper"), "possam_b_coco")
        average, none, mixed = run.step((12, 12)), run.step((0, 0)), run.step((0, 3))
    assert average.parameters == 51_274_098
    assert average.resting < none.peak < mixed.peak < average.peak
    # the sizes of the levels are copied once, in the first step
    first = {sync for sync in average.syncs if sync.place.endswith(":_sizes")}
    assert len(first) == 1 and not first & none.syncs.keys()
    later = {sync: times for sync, times in average.syncs.items() if sync not in first}
    assert none.syncs == mixed.syncs == later
    assert documented("possam_b_coco").startswith(row("possam_b_coco", [average]))


def test_the_command_prints_lines_of_the_documented_table(
    capsys: pytest.CaptureFixture[str],
) -> None:
    main(["two_way_1_b_coco", "--segments", "12"])
    lines = capsys.readouterr().out.splitlines()
    assert documented("two_way_1_b_coco").startswith(lines[2])
    text = (REPOSITORY / "docs/memory.md").read_text()
    waits = [line for line in lines if line.startswith("| `possam/")]
    assert len(waits) == 2
    for line in waits:  # how often depends on the run
        assert line.rpartition(" | ")[0] in text


def test_the_lab_s_memory_is_the_documented_one(capsys: pytest.CaptureFixture[str]) -> None:
    main(["possam_h_coco", "--scale", "lab", "--segments", "200"])
    peak = float(capsys.readouterr().out.splitlines()[2].split(" | ")[-1].strip(" |"))
    documented = (REPOSITORY / "docs/lab.md").read_text()
    assert peak < 20
    assert f"| GPU memory of a training (200 segments per image) | {peak:.0f} GiB |" in documented


def test_an_unknown_run_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["possam_x_coco"])
    assert "unknown run possam_x_coco; choose from possam_b_coco," in capsys.readouterr().err


@pytest.mark.paper_memory
def test_the_documented_table_is_what_is_measured() -> None:
    project = Project("paper")
    for name, steps in measure(project, list(project.runs), SEGMENTS):
        assert row(name, steps) == documented(name)


def small_step(device: FakeCuda, counts: Sequence[int], *, reads: bool = False) -> None:
    """A training step of a small model in bfloat16."""
    with CUDA:
        model = possam()
    if reads:
        model.pooling.register_forward_pre_hook(lambda _, inputs: print(inputs[1].sum().item()))
    trainer = Trainer(
        model=model,
        text=text_embeddings(),
        training=training_params(precision="bf16"),
        loss=loss_params(),
        seed=0,
        process=TrainingProcess(device=CUDA),
    )
    device.reset()
    targets = [
        Target(masks=cuda(count, 32, 32, dtype=torch.bool), labels=cuda(count, dtype=torch.int64))
        for count in counts
    ]
    batch = Batch(backbone=(cuda(2, 4, 4, 4),), clip_features=cuda(2, 6, 4, 4), targets=targets)
    trainer.step(0, [batch])


def test_a_pooling_that_refuses_images_without_targets_stops_a_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "resample_area", lambda maps, size: F.avg_pool2d(maps, 2))
    with FakeCuda() as device:
        small_step(device, (1, 0))
        with pytest.raises(FakeCudaError, match=r"avg_pool2d"):
            small_step(device, (0, 0))


def test_a_number_that_the_model_reads_is_not_expected(device: FakeCuda) -> None:
    small_step(device, (1, 1))
    check_syncs(device.syncs)
    small_step(device, (1, 1), reads=True)
    with pytest.raises(FakeCudaError, match=r"lambda>: aten._local_scalar_dense.default waits"):
        check_syncs(device.syncs)
