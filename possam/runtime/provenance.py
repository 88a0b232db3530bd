"""``provenance.json``: a result's inputs, code, machine, time and memory."""

import functools
import os
import platform
import re
import resource
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from possam.runtime.environment import Environment
from possam.runtime.files import read_json
from possam.runtime.short_commands import ask
from possam.runtime.version import __version__

PACKAGES = (
    *("numpy", "open_clip_torch", "pandas", "pillow", "pycocotools", "pydantic", "safetensors"),
    *("scipy", "segment-anything", "snakemake", "timm", "torch", "torchvision"),
)
"""Distributions whose versions can change a result."""

UNKNOWN = "unknown"
_CODE = Path(__file__).resolve().parents[2]
"""The folder of the code that runs: the checkout, also if the working folder is another one."""

GIT_MISSING = "git is not installed; install it, so that results name their commit"


def provenance(
    *,
    stage: str,
    parameters: Mapping[str, Any],
    inputs: Mapping[str, str],
    seed: int | None,
    started: float,
    accepted_code: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Describe a finished stage, for JSON; facts that cannot be found are ``"unknown"`` or null.

    Args:
        stage: the subcommand, for example ``"train"``.
        parameters: the resolved parameters.
        inputs: name or path of each input -> its hash.
        seed: the stage's seed; None if nothing in it is random.
        started: ``time.time()`` at the start, in seconds.
        accepted_code: changes of the code that a training went on after
            (:class:`possam.training.run_files.RunFiles`).
    """
    environment = Environment.load()
    return {
        "stage": stage,
        "parameters": dict(parameters),
        "inputs": dict(sorted(inputs.items())),
        "seed": seed,
        "git": source_state(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "hardware": hardware(),
        "started": datetime.fromtimestamp(started, tz=UTC).isoformat(timespec="seconds"),
        "wall_time_s": round(max(0.0, time.time() - started), 3),
        "peak_memory_mib": peak_memory_mib(),
        "slurm_job": environment.slurm_job,
        **({"accepted_code": list(accepted_code)} if accepted_code else {}),
    }


def source_state() -> dict[str, Any]:
    """:func:`git_state` of the code that runs.

    Frozen sources (:mod:`possam.launch.source`) bring that of the checkout they were copied from.
    """
    source = Environment.load().source
    if source:
        return dict(read_json(source))
    state = git_state(_CODE)
    if state["commit"] == UNKNOWN:
        _say_once(f"possam: no commit is recorded: {state['note']}")
    return state


@functools.cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def git_fault(root: Path) -> str | None:
    """Why git tells nothing about the checkout in ``root``, with the remedy; None if it does."""
    if shutil.which("git") is None:
        return GIT_MISSING
    code, _, errors = ask("git", "-C", str(root), "status", "--porcelain", "--", ".")
    if code == 0:
        return None
    if "dubious ownership" in errors:
        place = shlex.quote(str(root.resolve()))
        return (
            "git refuses this checkout, which belongs to another user; "
            f"git config --global --add safe.directory {place}"
        )
    if "not a git repository" in errors:
        return "git reports no checkout here; clone the project, so that results name their commit"
    return f"git fails here ({' '.join(errors.split())[:200]}); git status shows why"


def git_state(root: Path) -> dict[str, Any]:
    """Commit (hex digits, or ``"unknown"``), whether files differ from it (or None), and a note."""
    if shutil.which("git") is None:
        return {"commit": UNKNOWN, "dirty": None, "note": GIT_MISSING}
    git = ["git", "-C", str(root)]
    commit = ask(*git, "rev-parse", "--verify", "HEAD").good
    # Tables, pages and DVC's hashes are results of the commit, and no changes to it.
    sources = [".", *(f":(exclude){path}" for path in ("results", "reports", "dvc.lock"))]
    changes = ask(*git, "status", "--porcelain", "--", *sources).good
    if changes is None:
        return {"commit": UNKNOWN, "dirty": None, "note": git_fault(root)}
    if commit is None:
        return {"commit": UNKNOWN, "dirty": True, "note": "the checkout has no commit yet"}
    note = f"{len(changes.splitlines())} files differ from the commit" if changes else ""
    return {"commit": commit, "dirty": bool(changes), "note": note}


def package_versions() -> dict[str, str]:
    """Versions of :data:`PACKAGES` and of this package; ``"not installed"`` where absent."""
    versions = {"possam": __version__}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def usable_cores() -> int:
    """Number of cores that this process may use (all cores if the system does not say)."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def hardware() -> dict[str, Any]:
    """CPU model, cores (all, and those this process may use), memory in GiB, GPU names, system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": usable_cores(),
        "memory_gib": round(memory / 2**30, 1),
        "gpus": _gpu_names(),
    }


def _cpu_model() -> str:
    path = Path("/proc/cpuinfo")
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = re.search(r"^(?:model name|Model|cpu model)\s*:(.*)", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or UNKNOWN


def _gpu_names() -> list[str]:
    """GPU names from torch if it is loaded (loading takes seconds), else from the driver."""
    if (torch := sys.modules.get("torch")) is not None:
        return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    listing = ask("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").good
    return listing.splitlines() if listing else []


def peak_memory_mib() -> float:
    """Largest resident memory of this process or of any of its finished children, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024  # bytes on macOS, KiB elsewhere
    users = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return round(max(resource.getrusage(user).ru_maxrss for user in users) * unit / 2**20, 1)
