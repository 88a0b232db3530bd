"""The sum over slices: one order of additions, whoever adds."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from possam.training.distributed import alone
from possam.training.division import Division
from possam.training.reduction import TreeSum, branches_of, sum_over_processes


def slices_of(count: int, seed: int) -> list[Tensor]:
    """Values of such different sizes that every order of additions rounds differently."""
    generator = torch.Generator().manual_seed(seed)
    return [10.0 ** (k % 5) * torch.randn(50, generator=generator) for k in range(count)]


def added(values: list[Tensor], slices: range) -> TreeSum:
    total = TreeSum()
    for part in slices:
        total.add(part, [values[part].clone()])
    return total


@given(st.integers(1, 24), st.integers(0, 99), st.data())
def test_the_sum_does_not_depend_on_the_number_of_processes(
    count: int, seed: int, data: st.DataObject
) -> None:
    values = slices_of(count, seed)
    processes = data.draw(st.sampled_from([n for n in range(1, count + 1) if count % n == 0]))
    division = Division(batch_size=count, micro_batch=1, world_size=processes)
    together = TreeSum()
    for rank in range(processes):
        own = added(values, division.of(rank))
        sizes = [(branch.start, branch.size) for branch in own.branches]
        assert sizes == branches_of(division.of(rank))
        for branch in own.branches:
            together.add(branch.start, branch.values, size=branch.size)
    assert torch.equal(together.total()[0], added(values, range(count)).total()[0])


def test_the_order_of_additions_by_hand() -> None:
    v = slices_of(7, seed=0)
    expected = ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + v[6])
    assert torch.equal(added(v, range(7)).total()[0], expected)
    running = sum(v[1:], start=v[0])
    assert not torch.equal(running, expected)
    torch.testing.assert_close(running, expected, rtol=1e-5, atol=1e-2)


def test_one_slice_of_one_process_stays_as_it_is() -> None:
    value = torch.randn(3)
    total = TreeSum()
    total.add(0, [value])
    division = Division(batch_size=2, micro_batch=2)
    (found,) = sum_over_processes(total, division=division, place=alone("cpu"))
    assert found is value
