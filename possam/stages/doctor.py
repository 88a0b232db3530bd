"""Stage ``doctor``: whether this machine can run a scale; one line per matter, with a remedy."""

import importlib.util
import os
import shutil
import sqlite3
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from possam.assets.inventory import free_bytes, gigabytes, scale_assets
from possam.assets.roots import find
from possam.params.data import load_data
from possam.params.layout import Layout
from possam.params.plan import load_plan
from possam.params.project import Project
from possam.pipeline.graph import Graph
from possam.pipeline.plan import Plan, make_plan
from possam.runtime.environment import Environment
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.findings import OK, PROBLEM, WARNING, Finding, print_findings
from possam.runtime.gpu_driver import driver_fault, driver_version, minimum_driver
from possam.runtime.locks import require_locks
from possam.runtime.provenance import usable_cores

LOCK = Path("requirements.lock")
_PYTHON = ((3, 11), (3, 12))
_SLURM = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct")
_TIMEOUT_S = 20.0


def examine(project: Project) -> list[Finding]:
    """Examine everything that this machine needs for the project's scale."""
    findings = [_python(), *_packages()]
    gpus, slurm = _gpu_names(), _slurm()
    if slurm.state == PROBLEM and (gpus or load_plan(project)[1].unit != "GPU"):
        slurm = replace(slurm, state=WARNING)  # not needed: trainings can run here
    findings += [_gpus(project, gpus, slurm), *_driver(project, gpus, slurm), slurm]
    try:
        plan = make_plan(Graph(folder=project.folder, project=project), project.name, [])
        findings.append(_disk(project, plan))
    except InputError as error:  # in a data root; _data_roots names it
        remedy = "correct the data root named below"
        findings.append(Finding("disk", WARNING, f"not compared with a plan: {error}", remedy))
    findings += [
        *_locks(project),
        _memory(project),
        _cores(project),
        *_weights(project),
        *_data_roots(project),
    ]
    return [*findings, _mlflow()]


def doctor(project: Project) -> int:
    """Print the findings. Returns 1 if one is a problem, else 0."""
    return 1 if print_findings(examine(project), scale=project.name) else 0


def _python() -> Finding:
    found, good = sys.version.split()[0], sys.version_info[:2] in _PYTHON
    valid = " or ".join(f"{major}.{minor}" for major, minor in _PYTHON)
    text = found if good else f"{found}; {valid} is needed"
    return Finding.of("python", good, text, PROBLEM, "make setup PYTHON=python3.11")


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    if not LOCK.is_file():
        text = f"{LOCK} is not here: versions were not compared"
        yield Finding("packages", WARNING, text, "call possam in the repository")
        return
    needed = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, metadata.requires("possam") or ())
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    }
    missing, other, count = [], [], 0
    lines = (line.split("#")[0].strip() for line in LOCK.read_text("utf-8").splitlines())
    for requirement in (Requirement(line) for line in lines if line and line[0] != "-"):
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        count += 1
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(canonicalize_name(requirement.name))
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            other.append(f"{requirement.name} {version} ({requirement.specifier} is locked)")
    if lacking := sorted(needed & set(missing)):
        yield Finding("packages", PROBLEM, f"missing: {', '.join(lacking)}", "make setup")
    elif missing:
        text = f"missing (not for training and evaluation): {_some(sorted(missing))}"
        yield Finding("packages", WARNING, text, "make setup")
    if other:
        yield Finding("packages", WARNING, f"not as locked: {_some(other)}", "make setup")
    if not missing and not other:
        yield Finding("packages", OK, f"all {count} as in {LOCK}")


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _gpu_names() -> list[str]:
    """The GPUs that torch sees, with their memory."""
    import torch

    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [f"{device.name} ({gigabytes(device.total_memory)})" for device in devices]


def _gpus(project: Project, names: list[str], slurm: Finding) -> Finding:
    hardware = load_plan(project)[1]
    if names:
        return Finding("gpus", OK, ", ".join(sorted(set(names))) + f", {len(names)} in all")
    if hardware.unit != "GPU":
        return Finding("gpus", OK, f"none; scale {project.name} needs none")
    text = f"none that torch sees; scale {project.name} trains on {hardware.per_job['train']}"
    if slurm.state == OK:
        return Finding("gpus", OK, f"{text}, on SLURM's nodes")
    remedy = "use a machine with GPUs, or a login node of SLURM"
    return Finding("gpus", PROBLEM, text, remedy)


def _driver(project: Project, gpus: list[str], slurm: Finding) -> Iterator[Finding]:
    """Whether the NVIDIA driver runs the installed torch, as far as this machine can tell."""
    import torch

    cuda, driver = torch.version.cuda, driver_version()
    if load_plan(project)[1].unit != "GPU":
        return
    if driver is None and cuda is not None and not gpus:
        text = f"none here; torch {torch.__version__} needs {minimum_driver(cuda)} or newer"
        remedy = "compare a node's (srun --gres=gpu:1 nvidia-smi); docs/your-cluster.md"
        yield Finding("gpu driver", WARNING, text, remedy)
    elif not gpus and (fault := driver_fault(driver or "", cuda)):
        fault, _, remedy = fault.partition("; ")
        yield Finding("gpu driver", WARNING if slurm.state == OK else PROBLEM, fault, remedy)
    else:
        text = f"{driver or 'of unknown version'}, for torch {torch.__version__}"
        yield Finding("gpu driver", OK, text)


def _locks(project: Project) -> Iterator[Finding]:
    """Whether the folders that are written can be locked."""
    layout = Layout(project)
    for folder in dict.fromkeys((Path(), layout.assets, layout.results)):
        existing = next(path for path in (folder, *folder.parents) if path.is_dir())
        try:
            require_locks(existing)
        except InputError as error:
            fault, _, remedy = str(error).partition("; ")
            yield Finding("locks", PROBLEM, fault, remedy)
            return
        except OSError as error:
            yield Finding("locks", PROBLEM, str(error), "make the folder writable")
            return
    yield Finding("locks", OK, "files can be locked here")


def _run(*command: str) -> tuple[int, str]:
    """Exit code and output of a command; exit code 1 if it cannot be started or takes too long."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except (subprocess.TimeoutExpired, OSError) as error:
        return 1, str(error)
    return done.returncode, (done.stdout + done.stderr).strip()


def _slurm() -> Finding:
    missing = [command for command in _SLURM if not shutil.which(command)]
    if len(missing) == len(_SLURM):
        text = "no commands; jobs run on this machine only"
        return Finding("slurm", WARNING, text, "log in to the cluster for --profile slurm")
    if missing:
        remedy = "install SLURM's client commands (package slurm-client)"
        return Finding("slurm", PROBLEM, f"missing: {', '.join(missing)}", remedy)
    code, output = _run("sinfo", "--noheader", "--format=%P %a %D")
    if code != 0 or not output:
        text = f"sinfo: {output.splitlines()[0] if output else 'no partition'}"
        remedy = "is slurmctld running, and this machine known to it?"
        return Finding("slurm", PROBLEM, text, remedy)
    partitions = len(output.splitlines())
    code, output = _run("sacct", "--noheader", "--allocations", "--format=JobID")
    if code != 0 or "disabled" in output:
        text = f"sacct: {output.splitlines()[0] if output else f'exit code {code}'}"
        remedy = "job states are read from accounting: set AccountingStorageType to slurmdbd"
        return Finding("slurm", PROBLEM, text, remedy)
    return Finding("slurm", OK, f"{partitions} partitions, accounting answers")


def _disk(project: Project, plan: Plan) -> Finding:
    free, needed = free_bytes(Layout(project).assets), plan.disk.to_write
    text = f"{gigabytes(free)} free, {gigabytes(needed)} to be written for all tables"
    remedy = "make room, or name data sets that are on a disk already in data.yaml (roots)"
    return Finding.of("disk", free >= needed, text, PROBLEM, remedy)


def _available_memory() -> int | None:
    """Bytes of memory that are available now; None where the system does not report them."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    values = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(value) * 1024 for value in values), None)


def _memory(project: Project) -> Finding:
    available, needed = _available_memory(), load_plan(project)[1].memory_gib
    if available is None:
        return Finding("memory", WARNING, "free memory is not known here")
    text = f"{available / 2**30:.1f} GiB available, {needed:g} GiB for one training"
    remedy = "train on another machine, or end other programs"
    return Finding.of("memory", available >= needed * 2**30, text, WARNING, remedy)


def _cores(project: Project) -> Finding:
    count, threads = usable_cores(), project.scale.threads
    remedy = "fine on a login node; else set threads in the scale's file"
    text = f"{count} cores, {threads} threads per job"
    return Finding.of("cores", count >= threads, text, WARNING, remedy)


def _weights(project: Project) -> Iterator[Finding]:
    """The frozen towers: whether each file has the size that was verified."""
    layout, towers = Layout(project), project.scale.towers
    clip = [name for name in (towers.clip.asset, *towers.clip.files) if name is not None]
    missing, good = [], []
    command = f"possam download {{}} --scale {project.name}"
    for name in dict.fromkeys([*(tower.asset for tower in towers.sam.values()), *clip]):
        record, file = layout.asset_record(name), layout.assets / project.assets[name].file
        if not record.is_file():
            missing.append(name)
            continue
        content, text = read_json(record), f"{file}: has a record, but is not there"
        if file.is_file():
            size, verified = file.stat().st_size, content.get("bytes")
            if size == verified:
                how = "pinned" if content.get("pinned") else "checksum matched"
                good.append(f"{name} ({how})")
                continue
            text = f"{file}: {size} bytes, {verified} were verified"
        yield Finding("weights", PROBLEM, text, command.format(name))
    if good:
        yield Finding("weights", OK, ", ".join(good))
    if missing:
        text, remedy = f"not here yet: {', '.join(missing)}", command.format(" ".join(missing))
        yield Finding("weights", WARNING, text, remedy)


def _data_roots(project: Project) -> Iterator[Finding]:
    data, layout = load_data(project), Layout(project)
    names = scale_assets(project)
    used = {data.assets[name].root for name in names if name in data.assets}
    for root in sorted(used):
        if (folder := data.roots[root]) is None:
            continue
        found, faults = [], dict[str, None]()
        for name in names:
            if name not in data.assets or data.assets[name].root != root:
                continue
            try:
                if find(name, project.assets, data) is not None:
                    found.append(name)
            except InputError as error:
                faults[str(error)] = None
        text = "; ".join(faults) or f"{root}: {folder}: {', '.join(found)}"
        yield Finding("data roots", PROBLEM if faults else OK, text)
    if not any(data.roots[root] for root in used):
        yield Finding("data roots", OK, "none named; everything is downloaded")
    for name in names:
        asset = project.assets[name]
        here = layout.asset_record(name).is_file() or (layout.assets / asset.file).is_file()
        if not asset.urls and not here and data.root_of(name) is None:
            remedy = f"{asset.notes} Then: possam download {name}"
            yield Finding("data roots", WARNING, f"{name} cannot be downloaded without you", remedy)


def _mlflow() -> Finding:
    uri = Environment.load().tracking_uri
    if importlib.util.find_spec("mlflow") is None:
        return Finding("mlflow", WARNING, "not installed: nothing is tracked", "make setup")
    kind = urllib.parse.urlsplit(uri).scheme
    checks = {"sqlite": _sqlite_fault, "http": _server_fault, "https": _server_fault}
    fault = checks[kind](uri) if kind in checks else None
    remedy = "set POSSAM_TRACKING_URI (or MLFLOW_TRACKING_URI); only possam track needs it"
    return Finding.of("mlflow", not fault, f"{uri}: {fault}" if fault else uri, PROBLEM, remedy)


def _sqlite_fault(uri: str) -> str | None:
    path = Path(uri.removeprefix("sqlite:///"))
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        return f"{folder} cannot be written"
    if not path.exists():
        return None  # the first `possam track` makes it
    try:
        with sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5) as store:
            store.execute("SELECT count(*) FROM experiments").fetchone()
    except sqlite3.Error as error:
        return f"not a store of MLflow ({error})"
    return None


def _server_fault(uri: str) -> str | None:
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=5):
            return None
    except OSError as error:
        return str(error)
