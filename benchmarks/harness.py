"""Ways to the same result, side by side: time, memory, and how much their results differ.

The sides take turns (A B A B ...), so that a busy moment of the machine slows all of them; a ratio
compares calls of one turn. Nothing here is a test: speed depends on the machine, and is reported
with it.
"""

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.power_law import FEWEST, fit
from possam.runtime.provenance import git_state, hardware, package_versions

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One comparison.

    Attributes:
        name: ``<benchmark>/<what>``.
        ours, theirs: do the work once, from the same input, and return the result; ``theirs`` is
            what a user would run instead (None: nothing else does this).
        reference: what ``theirs`` is, with its version.
        others: further libraries that do the same, by name with version; each takes its turn and
            gets its own ratio, share of memory and difference.
        error: difference of the two results (0: equal), and what it is in words; None: not
            compared.
        items, unit: how much work one call does (``items`` images, ...).
        target, target_seconds: the project's target for the ratio, or for the time of a call;
            None: none.
        target_others: the target for the ratio against each of ``others``; None: none.
        target_memory: the target for the share of the reference's memory; None: none.
        device: where the work is done, ``cpu`` or ``cuda``. On CUDA a call ends when the device
            has finished, and memory is the device's.
        flops: floating-point operations of one call, as the reference does it. With ``ceiling``,
            the most that the device does per second, the share that each side reaches is reported.
        published: what others published of this work, in ``unit`` per second, and where.
        note: what a reader must know to judge the ratio.
    """

    name: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any] | None = None
    reference: str = ""
    others: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    error: tuple[Callable[[Any, Any], float], str] | None = None
    items: int = 1
    unit: str = "call"
    target: float | None = None
    target_seconds: float | None = None
    target_others: float | None = None
    target_memory: float | None = None
    device: str = "cpu"
    flops: float | None = None
    ceiling: float | None = None
    published: tuple[float, str] | None = None
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """What a call costs as one quantity grows.

    Attributes:
        name: ``<benchmark>/<what>``.
        quantity: what grows, with its unit: ``classes``, ``side of the image (pixels)``.
        points: the case of each size, sizes ascending, three at least. A case without a reference
            is a point that the reference's curve lacks.
        target_memory_exponent: the target for the exponent of memory, at most; None: none.
        note: what a reader must know to judge the exponents.
    """

    name: str
    quantity: str
    points: Mapping[int, Case]
    target_memory_exponent: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        sizes = list(self.points)
        if len(sizes) < FEWEST or sizes != sorted(sizes) or sizes[0] < 1:
            raise ValueError(f"{self.name}: sizes {sizes}: {FEWEST} or more are needed, ascending")


@dataclass
class Side:
    """One side of a case under measurement.

    Attributes:
        seconds: of each call.
        first_s: of the call that warms up, which may compile.
        memory_mib: what the first call held at most, MiB above what was there before.
        error: difference of its result from ours.
    """

    call: Callable[[], Any]
    device: str
    seconds: list[float] = field(default_factory=list)
    first_s: float | None = None
    memory_mib: float | None = None
    error: float | None = None

    def warm_up(self) -> Any:
        """Call it for the first time, and measure its memory; returns the result."""
        began = time.perf_counter()
        result, self.memory_mib = with_memory(self.call, device=self.device)
        self.first_s = time.perf_counter() - began
        return result

    def time(self) -> None:
        """Call it once more."""
        gc.collect()
        finish(self.device)
        began = time.perf_counter()
        self.call()
        finish(self.device)
        self.seconds.append(time.perf_counter() - began)

    def summary(self, case: Case) -> dict[str, Any]:
        """JSON-able: median, extremes and all seconds, the rate, and the share of the ceiling."""
        middle = median(self.seconds)
        reached = None
        if case.flops is not None and case.ceiling is not None and middle:
            reached = case.flops / middle / case.ceiling
        return {
            "first_s": self.first_s,
            "share_of_ceiling": reached,
            "median_s": middle,
            "low_s": min(self.seconds),
            "high_s": max(self.seconds),
            "seconds": self.seconds,
            "per_second": case.items / middle if middle else None,
            "peak_memory_mib": self.memory_mib,
        }


class Comparison:
    """A case under measurement: every side is called once to warm up, then once per turn."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._ours = Side(case.ours, case.device)
        self._theirs = None if case.theirs is None else Side(case.theirs, case.device)
        self._others = {name: Side(call, case.device) for name, call in case.others.items()}
        first = [] if self._theirs is None else [self._theirs]
        self._references = [*first, *self._others.values()]

    def warm_up(self) -> None:
        """Call every side; note its memory, and each reference's difference from our result."""
        # The references first: what they leave in allocators then counts against this project.
        results = [side.warm_up() for side in self._references]
        own = self._ours.warm_up()
        if self.case.error is not None:
            for side, result in zip(self._references, results, strict=True):
                side.error = self.case.error[0](own, result)

    def turn(self) -> str:
        """Time every side once more; returns how long each took, in words."""
        for side in (*self._references, self._ours):
            side.time()
        others = ", ".join(f"{side.seconds[-1]:.3g} s" for side in self._references)
        return f"{self._ours.seconds[-1]:.3g} s" + (f" against {others}" if others else "")

    def outcome(self) -> dict[str, Any]:
        """The whole record, JSON-able."""
        case, ours = self.case, self._ours
        return {
            "name": case.name,
            "reference": case.reference,
            "unit": case.unit,
            "items": case.items,
            "target": case.target,
            "target_seconds": case.target_seconds,
            "target_memory": case.target_memory,
            "error_is": None if case.error is None else case.error[1],
            "device": case.device,
            "flops": case.flops,
            "ceiling_flops_per_s": case.ceiling,
            "published": None if case.published is None else list(case.published),
            "ours": ours.summary(case),
            **_compared(ours, self._theirs, case),
            "others": [
                {"reference": name, "target": case.target_others, **_compared(ours, side, case)}
                for name, side in self._others.items()
            ],
            "note": case.note,
        }


def _check_repeats(repeats: int) -> None:
    if repeats < 1:
        raise ValueError(f"repeats {repeats}: at least 1")


def measure(case: Case, *, repeats: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Run all sides in turns; returns the record, JSON-able.

    One call of each side comes first: it warms up, its memory is measured, its result compared.

    Raises:
        ValueError: fewer than one repeat.
    """
    _check_repeats(repeats)
    comparison = Comparison(case)
    comparison.warm_up()
    for turn in range(repeats):
        report(f"{case.name}: {turn + 1}/{repeats}: {comparison.turn()}")
    return comparison.outcome()


def measure_curve(curve: Curve, *, repeats: int, report: Callable[[str], None]) -> dict[str, Any]:
    """Run all sizes in turns; returns the record with its fits, JSON-able.

    A turn goes through all sizes, so that a busy moment of the machine does not bend the curve.

    Returns:
        ``points``: what :func:`measure` returns, with the ``size``; ``fits``: the
        :class:`~benchmarks.power_law.PowerLaw` of the median seconds and of the peak memory, ours
        and the reference's, or None where too few points have the value.

    Raises:
        ValueError: fewer than one repeat.
    """
    _check_repeats(repeats)
    comparisons = {size: Comparison(case) for size, case in curve.points.items()}
    # What is set up once (caches, thread pools) must not count as memory of the smallest size.
    next(iter(curve.points.values())).ours()
    for comparison in comparisons.values():
        comparison.warm_up()
    for turn in range(repeats):
        for size, comparison in comparisons.items():
            report(f"{curve.name}, {size}: {turn + 1}/{repeats}: {comparison.turn()}")
    points = [{"size": size, **each.outcome()} for size, each in comparisons.items()]
    return {
        "name": curve.name,
        "quantity": curve.quantity,
        "points": points,
        "fits": {
            side: {cost: _fit(points, side, cost) for cost in ("median_s", "peak_memory_mib")}
            for side in ("ours", "theirs")
        },
        "target_memory_exponent": curve.target_memory_exponent,
        "note": curve.note,
    }


def _fit(points: Sequence[Mapping[str, Any]], side: str, cost: str) -> dict[str, Any] | None:
    """The power law of one side's cost, over the points that have a cost."""
    known = [point for point in points if point[side] is not None]
    found = {p["size"]: p[side][cost] for p in known if (p[side][cost] or 0) > 0}
    if len(found) < FEWEST:
        return None
    law = fit(list(found), list(found.values()))
    return {**asdict(law), "local": list(law.local), "holds": law.holds}


def _compared(ours: Side, theirs: Side | None, case: Case) -> dict[str, Any]:
    """The fields that compare two sides, JSON-able."""
    if theirs is None:
        return {"ratio": None, "memory_share": None, "error": None, "theirs": None}
    return {
        "ratio": _ratio(ours, theirs),
        "memory_share": _share(ours, theirs),
        "error": theirs.error,
        "theirs": theirs.summary(case),
    }


def _ratio(ours: Side, theirs: Side) -> dict[str, float]:
    """How many times faster ours is, turn by turn: median and extremes."""
    ratios = [b / a for a, b in zip(ours.seconds, theirs.seconds, strict=True)]
    return {"median": median(ratios), "low": min(ratios), "high": max(ratios)}


def _share(ours: Side, theirs: Side) -> float | None:
    if not ours.memory_mib or not theirs.memory_mib:
        return None
    return ours.memory_mib / theirs.memory_mib


def surroundings(threads: int, packages: Sequence[str]) -> dict[str, Any]:
    """Machine, commit and versions, JSON-able."""
    versions = package_versions()
    for name in packages:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return {
        "when": datetime.now(tz=UTC).isoformat(timespec="seconds"),
        "git": git_state(Path(".")),
        "threads": threads,
        "hardware": hardware(),
        "packages": versions,
        "python": sys.version.split()[0],
    }


def finish(device: str) -> None:
    """Wait until ``device`` (``cpu`` or ``cuda``) has finished its work."""
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


def with_memory(call: Callable[[], Any], *, device: str = "cpu") -> tuple[Any, float | None]:
    """The result of ``call`` and the most memory it held at once, MiB above the start.

    On CUDA it is the device's memory of PyTorch's tensors. None where the system cannot report it
    (not Linux, or a kernel without ``clear_refs``).
    """
    gc.collect()
    if device != "cpu":
        return _with_device_memory(call, device)
    _return_freed_memory()
    try:
        _CLEAR_REFS.write_text("5", encoding="ascii")  # forget the peak
        before = _status("VmRSS")
    except OSError:
        return call(), None
    result = call()
    return result, round((_status("VmHWM") - before) / 1024, 1)


def _with_device_memory(call: Callable[[], Any], device: str) -> tuple[Any, float]:
    import torch

    finish(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    finish(device)
    return result, round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)


def _status(key: str) -> int:
    """A value of ``/proc/self/status``, KiB."""
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0])
    raise OSError(f"{_STATUS}: no {key}")


def free_memory_gib() -> float:
    """Free memory, GiB; all memory of the machine where the system cannot report it."""
    try:
        lines = _MEMORY.read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) / 2**20
    return float(hardware()["memory_gib"])


def _return_freed_memory() -> None:
    """Make the C library return freed blocks, which would not count as new memory."""
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return


def relative_error(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the largest absolute value of the reference (tensors)."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


Suite = Callable[[], Iterator[Case | Curve]]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Cases and curves that are measured together.

    Attributes:
        what: one line for ``--list``.
        cases: makes them one by one, so that each is freed before the next is made.
        packages: distributions that the references come from.
        repeats: turns of each case or curve without ``--repeats``.
    """

    what: str
    cases: Suite
    packages: tuple[str, ...]
    repeats: int
