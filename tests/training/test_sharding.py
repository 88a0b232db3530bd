"""Micro-batches and ranks: the same samples and the same sums for any number of processes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from possam.runtime.errors import InputError
from possam.training.distributed import single_process
from possam.training.sharding import BatchSharding, TreeSum, branches_of, sum_over_ranks
from possam.training.sources import SampleOrder


def values_of(count: int, seed: int) -> list[Tensor]:
    """Values of such different sizes that every order of additions rounds differently."""
    generator = torch.Generator().manual_seed(seed)
    return [10.0 ** (k % 5) * torch.randn(50, generator=generator) for k in range(count)]


def added(values: list[Tensor], shard: range) -> TreeSum:
    total = TreeSum()
    for index in shard:
        total.add(index, [values[index].clone()])
    return total


@given(st.integers(1, 24), st.integers(0, 99), st.data())
def test_the_sum_does_not_depend_on_the_number_of_processes(
    count: int, seed: int, data: st.DataObject
) -> None:
    values = values_of(count, seed)
    processes = data.draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
    sharding = BatchSharding(batch_size=count, micro_batch=1, world_size=processes)
    together = TreeSum()
    for rank in range(processes):
        own = added(values, sharding.shard(rank))
        sizes = [(branch.start, branch.size) for branch in own.branches]
        assert sizes == branches_of(sharding.shard(rank))
        for branch in own.branches:
            together.add(branch.start, branch.values, size=branch.size)
    assert torch.equal(together.total()[0], added(values, range(count)).total()[0])


def test_the_order_of_additions_by_hand() -> None:
    v = values_of(7, seed=0)
    expected = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + v[6])
    assert torch.equal(added(v, range(7)).total()[0], expected)
    running = sum(v[1:], start=v[0])
    assert not torch.equal(running, expected)
    torch.testing.assert_close(running, expected, rtol=1e-5, atol=1e-2)


def test_one_micro_batch_of_one_process_stays_as_it_is() -> None:
    value = torch.randn(3)
    total = TreeSum()
    total.add(0, [value])
    sharding = BatchSharding(batch_size=2, micro_batch=2)
    (found,) = sum_over_ranks(total, sharding=sharding, process=single_process("cpu"))
    assert found is value


@given(
    micro_batch=st.integers(1, 4),
    micro_batches=st.integers(1, 12),
    images=st.integers(1, 30),
    start=st.integers(0, 5),
    data=st.data(),
)
def test_any_number_of_processes_consumes_the_same_samples_in_the_same_micro_batches(
    micro_batch: int, micro_batches: int, images: int, start: int, data: st.DataObject
) -> None:
    batch_size = micro_batch * micro_batches
    valid = [n for n in range(1, micro_batches + 1) if micro_batches % n == 0]
    count = data.draw(st.sampled_from(valid))
    shardings = [
        BatchSharding(batch_size=batch_size, micro_batch=micro_batch, rank=rank, world_size=count)
        for rank in range(count)
    ]
    for step in range(start, start + 4):
        own = [index for sharding in shardings for index in sharding.own]
        assert own == list(range(micro_batches))
        numbers = [s.number(step, index) for s in shardings for index in s.own]
        assert numbers == list(range(step * micro_batches, (step + 1) * micro_batches))
        # each process has an order of its own, and starts where it is resumed
        shown = [
            SampleOrder(images, seed=3).indices(sharding.samples(step, index))
            for sharding in shardings
            for index in sharding.own
        ]
        assert {len(own) for own in shown} == {micro_batch}
        single = SampleOrder(images, seed=3)
        expected = single.indices(range(step * batch_size, (step + 1) * batch_size))
        assert [index for own in shown for index in own] == expected


@pytest.mark.parametrize(
    ("batch_size", "micro_batch", "count", "message"),
    [
        (16, 2, 3, r"16 .* 2 makes 8 micro-batches .* 3 processes .* processes: 1, 2, 4, 8$"),
        (16, 2, 16, r"valid numbers of processes: 1, 2, 4, 8$"),
        (5, 2, 1, r"batch_size 5 is no multiple of training.micro_batch 2"),
    ],
)
def test_what_would_train_with_another_batch_size_is_refused(
    batch_size: int, micro_batch: int, count: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        BatchSharding(batch_size=batch_size, micro_batch=micro_batch, world_size=count)
