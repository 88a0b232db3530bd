"""Parity: how close each borrowed part is to its reference, one line per part.

A test marked ``@pytest.mark.parity("<part>")`` compares through the fixture ``parity``; every
comparison asserts its bound and is counted. At the end of a run a table lists, for each part, its
reference, the number of cases and the largest relative error; ``--parity-report FILE`` also writes
it as Markdown. The keys of :data:`PARTS` are the valid parts, in the order of the table.
"""

import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from possam.runtime.files import atomic_write

EXACT = 1e-12
"""Bound of what is counted and not computed: metrics, ids, labels."""


@dataclass(frozen=True)
class Part:
    """One line of the table: title, reference, and the package that it comes from, if any."""

    title: str
    reference: str
    package: str | None = None


PARTS: Mapping[str, Part] = {
    "sam_encoder": Part("SAM image encoder", "image encoder", "segment-anything"),
    "clip_image": Part("CLIP image, pooled and projected", "encode_image", "open_clip_torch"),
    "clip_text": Part("CLIP text, templates averaged", "encode_text", "open_clip_torch"),
    "deformable_attention": Part("deformable attention", "Mask2Former", "transformers"),
    "pixel_decoder": Part("pixel decoder, every layer", "Mask2Former", "transformers"),
    "mask_decoder": Part("mask decoder, every layer", "Mask2Former", "transformers"),
    "matching": Part("matching costs, assignment", "Mask2Former; brute force", "transformers"),
    "losses": Part("losses and their gradients", "Mask2Former; written out", "transformers"),
    "geometric_ensemble": Part("geometric ensemble", "FC-CLIP's formula, written out"),
    "fcclip_head": Part("FC-CLIP's head", "the released head, written out"),
    "fcclip_pooling": Part("FC-CLIP's pooling of CLIP's map", "the released rule, written out"),
    "fcclip_filter": Part("FC-CLIP's ensemble and mask filter", "the released rule, written out"),
    "mase": Part("MASE", "its properties and formula, written out"),
    "panoptic_quality": Part("PQ, SQ, RQ", "pq_compute", "panopticapi-lite"),
    "mask_ap": Part("mask AP", "COCOeval", "pycocotools"),
    "miou": Part("mIoU", "Jaccard index; hand count", "torchmetrics"),
    "panoptic_inference": Part("panoptic merging", "slow reference, written out"),
    "instance_inference": Part("instance inference", "slow reference, written out"),
    "semantic_inference": Part("semantic inference", "slow reference, written out"),
    "batching": Part("results in batches, orders, chunks", "one image at a time"),
    "coco": Part("COCO panoptic conversion", "upstream sample"),
    "ade20k": Part("ADE20K-150 conversion", "upstream samples"),
    "ade20k_full": Part("ADE20K-full conversion", "upstream sample and its JSON"),
    "pascal_context": Part("PASCAL Context 459 conversion", "label maps, written out"),
    "parameters": Part("parameter counts", "the paper, Table 0.B.1; towers' own"),
    "seen_classes": Part("seen classes", "FC-CLIP's rule on the class-name files"),
}  # fmt: skip


@dataclass
class Tally:
    """What was compared in one part: number of comparisons, largest relative error and bound."""

    cases: int = 0
    error: float = 0.0
    bound: float = 0.0

    def add(self, cases: int, error: float, bound: float) -> None:
        self.cases += cases
        self.error = max(self.error, error)
        self.bound = max(self.bound, bound)


def relative_error(ours: Any, theirs: Any) -> float:
    """Largest absolute difference over the largest absolute value of the reference.

    Tensors, arrays, numbers, or sequences and mappings of them (then the largest of their items).
    NaN equals NaN and infinity itself; other things must be equal (0.0) or are not (infinity).
    """
    if isinstance(theirs, Mapping):
        if set(ours) != set(theirs):
            return float("inf")
        return max((relative_error(ours[key], theirs[key]) for key in theirs), default=0.0)
    if isinstance(theirs, Sequence) and not isinstance(theirs, str):
        if len(ours) != len(theirs):
            return float("inf")
        return max((relative_error(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    if not hasattr(theirs, "detach") and not isinstance(
        theirs, np.ndarray | np.generic | int | float
    ):
        return 0.0 if ours == theirs else float("inf")
    left, right = (_numbers(value) for value in (ours, theirs))
    if left.shape != right.shape:
        return float("inf")
    if not left.size:
        return 0.0
    same = (left == right) | (np.isnan(left) & np.isnan(right))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(left - right))
    if not np.isfinite(difference).all():
        return float("inf")
    largest = float(difference.max())
    finite = np.abs(right[np.isfinite(right)])
    scale = float(finite.max()) if finite.size else 0.0
    return largest / scale if scale > 0 else (0.0 if largest == 0 else float("inf"))


def _numbers(value: Any) -> np.ndarray:
    if hasattr(value, "detach"):  # a tensor; importing torch here would cost every run seconds
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype.kind == "f" else array.astype(np.int64)


@dataclass
class Parity:
    """The fixture: comparisons of the running test, which must be marked with its part."""

    tally: Tally = field(default_factory=Tally)
    part: str | None = None

    def close(self, ours: Any, theirs: Any, *, bound: float) -> None:
        """One case: the relative error (see :func:`relative_error`) is at most ``bound``."""
        assert self.part is not None, "mark the test: @pytest.mark.parity(<part>)"
        error = relative_error(ours, theirs)
        self.tally.add(1, error, bound)
        assert error <= bound, f"{self.part}: relative error {error:.3g} exceeds {bound:g}"

    def equal(self, ours: Any, theirs: Any) -> None:
        """One case: exact, up to the last digits of a double (1e-12)."""
        self.close(ours, theirs, bound=EXACT)


class ParityPlugin:
    """Collects the tallies of all test processes and prints the table."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.fixture = Parity()
        self.tallies: dict[str, Tally] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        mark = item.get_closest_marker("parity")
        self.fixture.part = mark.args[0] if mark else None
        self.fixture.tally = Tally()
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: Any) -> Iterator[None]:
        part, tally = self.fixture.part, self.fixture.tally
        if call.when == "call" and part is not None:
            item.user_properties.append(("parity", [part, tally.cases, tally.error, tally.bound]))
        return (yield)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            for mark in item.iter_markers("parity"):
                if mark.args[:1] == () or mark.args[0] not in PARTS:
                    raise pytest.UsageError(
                        f"{item.nodeid}: parity{mark.args}: valid parts: {', '.join(PARTS)}"
                    )

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call":
            return
        for name, value in report.user_properties:
            if name == "parity":
                part, cases, error, bound = value  # type: ignore[misc]
                self.tallies.setdefault(part, Tally()).add(cases, error, bound)

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int) -> None:
        if not self.tallies:
            return
        target = self.config.getoption("--parity-report")
        terminalreporter.section("parity with the references")
        for row in self.rows(all_parts=target is not None):
            terminalreporter.write_line("{:<36}{:<50}{:>8}{:>10}{:>8}".format(*row))
        if target is not None and exitstatus == 0:
            path = Path(target)
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as stream:
                stream.write(self.markdown())
            terminalreporter.write_line(f"written: {path}")

    def rows(self, *, all_parts: bool) -> list[tuple[str, ...]]:
        """Header and one row per part; with ``all_parts`` also of those that were ``not run``."""
        rows = [("part", "reference", "cases", "error", "bound")]
        for key, part in PARTS.items():
            reference = part.reference
            if part.package is not None:
                reference = f"{part.package} {version(part.package)}: {reference}"
            tally = self.tallies.get(key, Tally())
            if not tally.cases and not all_parts:
                continue
            numbers = (
                (str(tally.cases), f"{tally.error:.1e}" if tally.error else "0", f"{tally.bound:g}")
                if tally.cases
                else ("not run", "", "")
            )
            rows.append((part.title, reference, *numbers))
        return rows

    def markdown(self) -> str:
        """The table with versions and commit."""
        head, *rows = self.rows(all_parts=True)
        lines = [
            "# Parity with the references",
            "",
            "Written by `make parity`. Error: largest absolute difference over the largest value",
            "of the reference, the largest of all cases. Weights are random; metrics and",
            "conversions are exact.",
            "",
            f"- commit: {_commit()}",
            f"- Python {platform.python_version()}, torch {version('torch')}, numpy "
            f"{version('numpy')}, {platform.machine()}",
            "",
            f"| {' | '.join(head)} |",
            "|---|---|--:|--:|--:|",
            *(f"| {' | '.join(row)} |" for row in rows),
        ]
        return "\n".join(lines) + "\n"


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        commit, changed = git("rev-parse", "HEAD"), git("status", "--porcelain", "possam", "tests")
    except (OSError, subprocess.CalledProcessError):
        return "unknown (not a git checkout)"
    return f"{commit}{' with uncommitted changes' if changed else ''}"
