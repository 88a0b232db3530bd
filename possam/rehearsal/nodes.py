"""What the nodes of a job and their shared file system can do, tried by all its processes."""

import os
import shutil
import socket
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from possam.assets.inventory import free_bytes, gigabytes
from possam.model.ops.deformable import sample_plain, sample_sum
from possam.model.pixel_decoder import reference_points
from possam.params.plan import load_plan
from possam.params.project import Project
from possam.pipeline.graph import Graph
from possam.pipeline.plan import make_plan
from possam.rehearsal.drawn import GRID
from possam.runtime.errors import PossamError
from possam.runtime.faults import explain
from possam.runtime.files import atomic_directory, read_json, write_json
from possam.runtime.findings import OK, PROBLEM, WARNING, Finding
from possam.runtime.gpu_driver import driver_version
from possam.runtime.locks import hold, is_held
from possam.runtime.provenance import usable_cores
from possam.runtime.secrets import redact
from possam.training.distributed import TrainingProcess

LATE_S = 60.0
"""How long network storage may take to show one node what another has written."""

_SLOW_S = 5.0
_SHM = Path("/dev/shm")
_CGROUPS, _OWN_CGROUP = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_PREFETCHED = 2
"""Batches that torch's DataLoader has each worker hold ready."""

_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What one process finds on its node; bytes, and None for what does not exist or is unknown."""

    host: str
    rank: int
    cores: int
    memory: int
    shared_memory: int | None
    gpu: str | None
    gpu_memory: int | None
    gpu_fault: str | None


def look(process: TrainingProcess) -> Machine:
    """This process's machine."""
    name = memory = fault = None
    if process.device.type == "cuda":
        properties = torch.cuda.get_device_properties(process.device)
        name, memory = properties.name, properties.total_memory
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            fault = "it cannot compute in bfloat16"
    return Machine(
        host=socket.gethostname(),
        rank=process.rank,
        cores=usable_cores(),
        memory=_memory_limit(),
        shared_memory=shutil.disk_usage(_SHM).free if _SHM.is_dir() else None,
        gpu=name,
        gpu_memory=memory,
        gpu_fault=fault,
    )


def _memory_limit() -> int:
    """The memory that this job may use: the least that a cgroup around it or the machine has."""
    sizes = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    place = _CGROUPS
    if _OWN_CGROUP.is_file():
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
        own = next((line[3:] for line in lines if line.startswith("0::")), "/")
        place = _CGROUPS / own.lstrip("/")
    for folder in (place, *place.parents):
        limit = folder / "memory.max"
        if limit.is_file() and (text := limit.read_text(encoding="ascii").strip()).isdigit():
            sizes.append(int(text))
    return min(sizes)


def examine(project: Project, process: TrainingProcess, folder: Path) -> list[Finding]:
    """Try what a training needs of its nodes; every process calls it.

    ``folder``: on the file system that the nodes share; it is written to.
    """
    machines: list[Machine] = process.collect(look(process))
    trials: Mapping[str, Callable[[], Finding]] = {
        "files": lambda: _room(project, folder),
        "exchange": lambda: _exchange(project, process),
        "locks": lambda: _locks(process, folder),
        "renames": lambda: _renames(process, folder),
        "sampling": lambda: _sampling(process),
    }
    findings = [*_machines(project, machines, process)]
    return findings + [_together(process, matter, trial) for matter, trial in trials.items()]


def _together(process: TrainingProcess, matter: str, trial: Callable[[], Finding]) -> Finding:
    """The worst of what all processes find; an exception is a problem."""
    try:
        found = trial()
    except (PossamError, OSError, RuntimeError) as error:
        found = Finding(matter, PROBLEM, " ".join(redact(explain(error) or error).split()))
    everyone: list[Finding] = process.collect(found)
    return max(everyone, key=lambda one: (OK, WARNING, PROBLEM).index(one.state))


def _machines(
    project: Project, machines: list[Machine], process: TrainingProcess
) -> Iterator[Finding]:
    training, hardware = project.scale.training, load_plan(project)[1]
    hosts = {one.host: [m for m in machines if m.host == one.host] for one in machines}
    text = (
        f"{len(machines)} {'process' if len(machines) == 1 else 'processes'} on {', '.join(hosts)}"
    )
    yield Finding("nodes", OK, text)
    if process.device.type == "cuda":
        names = sorted({f"{one.gpu} ({gigabytes(one.gpu_memory)})" for one in machines})
        faults = sorted({one.gpu_fault for one in machines if one.gpu_fault})
        versions = (
            f"torch {torch.__version__}, CUDA {torch.version.cuda}, driver {driver_version()}"
        )
        text = f"{', '.join(names)}; {versions}"
        remedy = "name GPUs of compute capability 8.0 or later as gpu_type in params/slurm.yaml"
        yield Finding.of("gpus", not faults, "; ".join([text, *faults]), PROBLEM, remedy)
    for host, own in hosts.items():
        needed = hardware.memory_gib * len(own) * 2**30
        size = own[0].memory
        text = f"{host}: {gigabytes(size)} for {len(own)} of them, {gigabytes(needed)} expected"
        remedy = "raise memory_gib of train in params/slurm.yaml"
        yield Finding.of("memory", size >= needed, text, WARNING, remedy)
        needed_cores = max(training.workers, project.scale.threads)
        text = f"{host}: {own[0].cores} per process, {needed_cores} used"
        remedy = "raise cpus of train in params/slurm.yaml"
        yield Finding.of("cores", own[0].cores >= needed_cores, text, WARNING, remedy)
        if training.workers:
            yield _shared_memory(project, host, own)


def _shared_memory(project: Project, host: str, own: list[Machine]) -> Finding:
    training = project.scale.training
    segments, pixels = GRID[0] * GRID[1], training.augmentation.size**2
    image = pixels * (3 + segments)  # uint8 RGB, and a bool mask per segment
    needed = len(own) * training.workers * _PREFETCHED * training.micro_batch * image
    free = own[0].shared_memory
    if free is None:
        remedy = "mount it in the container (--ipc=host or --shm-size), or set training.workers: 0"
        return Finding("/dev/shm", PROBLEM, f"{host}: it does not exist", remedy)
    text = f"{host}: {gigabytes(free)} free, about {gigabytes(needed)} for images read ahead"
    remedy = "enlarge it (--shm-size of a container), or lower training.workers"
    return Finding.of("/dev/shm", free >= needed, text, PROBLEM, remedy)


def _room(project: Project, folder: Path) -> Finding:
    """Free bytes and files of the shared file system, beside what all tables still need."""
    graph, status = Graph(folder=project.folder, project=project), os.statvfs(folder)
    needed = make_plan(graph, project.name, []).disk.to_write.files
    text = f"{gigabytes(free_bytes(folder))} free"
    if not status.f_files:  # such as btrfs, which has no fixed number
        return Finding("files", OK, f"{text}; no limit on files is reported")
    text += f", {status.f_favail:,} more files possible, about {needed:,} needed"
    remedy = "ask for a larger quota of files (inodes), or name data on other disks in data.yaml"
    return Finding.of("files", status.f_favail >= needed, text, PROBLEM, remedy)


def _exchange(project: Project, process: TrainingProcess) -> Finding:
    """Sum a tensor of the gradients' size over all processes, as every step does."""
    if process.world_size == 1:
        return Finding("exchange", OK, "one process")
    count = load_plan(project)[1].trained_parameters
    backend = "NCCL" if process.device.type == "cuda" else "gloo"
    expected = process.world_size * (process.world_size + 1) / 2
    seconds = 0.0
    for _ in range(2):  # the first connects
        values = torch.full((count,), float(process.rank + 1), device=process.device)
        process.collect(None)
        began = time.perf_counter()
        with process.exchange():
            dist.all_reduce(values)
        good = bool((values == expected).all())  # waits for the GPU
        seconds = time.perf_counter() - began
    rate = gigabytes(count * 4 / seconds)
    text = (
        f"{backend}: {gigabytes(count * 4)} over {process.world_size} processes, {rate} per second"
    )
    remedy = "see NCCL_DEBUG=INFO; NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME name the network"
    return Finding.of("exchange", good, text if good else f"{text}: a wrong sum", PROBLEM, remedy)


def _locks(process: TrainingProcess, folder: Path) -> Finding:
    """The first process holds a lock, and all others must see it."""
    path, seen = folder / ".lock", True
    if process.is_first:
        with hold(path, timeout=LATE_S):
            process.collect(None)
            seen = is_held(path)
            process.collect(None)
    else:
        process.collect(None)
        seen = _soon(lambda: is_held(path)) is not None
        process.collect(None)
    text = "a lock of one process is seen by all" if seen else "a lock of another node is not seen"
    remedy = "mount the file system with locks over its nodes (Lustre: -o flock; NFS: not nolock)"
    return Finding.of("locks", seen, text, PROBLEM, remedy)


def _renames(process: TrainingProcess, folder: Path) -> Finding:
    """The first process renames a folder into place, and all others must find it whole."""
    made, content = folder / "renamed", {"rehearsal": os.urandom(8).hex()}
    if process.is_first:
        shutil.rmtree(made, ignore_errors=True)
    process.collect(None)
    if process.is_first:
        with atomic_directory(made) as temporary:
            write_json(temporary / "content.json", content)
    expected = process.collect(content)[0]
    file = made / "content.json"
    late = _soon(lambda: file.is_file() and read_json(file) == expected)
    if late is None:
        text = f"after {LATE_S:.0f} s a renamed folder of another node is not seen"
        return Finding(
            "renames", PROBLEM, text, "is this folder on a file system that nodes share?"
        )
    text = f"seen by all processes after {late:.1f} s"
    remedy = "lower the time that the nodes cache attributes (NFS: actimeo)"
    return Finding.of("renames", late <= _SLOW_S, text, WARNING, remedy)


def _soon(condition: Callable[[], bool]) -> float | None:
    """Seconds until ``condition`` holds; None if it does not within :data:`LATE_S`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > LATE_S:
            return None
        time.sleep(0.1)
    return time.monotonic() - began


def _sampling(process: TrainingProcess) -> Finding:
    """The device's own code for deformable attention (Triton, compiled loops) beside PyTorch's."""
    device, shapes = process.device, [(16, 16), (8, 8)]
    generator = torch.Generator().manual_seed(0)
    places = reference_points(shapes, device=torch.device("cpu"))
    heads, points, width = 4, 4, 8

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    parts = (
        draw(2, len(places), heads, width),
        draw(2, len(places), heads, len(shapes), points, 2),
        draw(2, len(places), heads, len(shapes), points),
    )
    results = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for sample in (sample_sum, sample_plain):
            leaves = [part.to(device).requires_grad_() for part in parts]
            out = sample(*leaves, references=places.to(device), shapes=shapes)
            out.sum().backward()
            results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    if slow := [str(one.message) for one in caught if "Triton" in str(one.message)]:
        remedy = "give the nodes a C compiler and Python's headers (setup in params/slurm.yaml)"
        return Finding("sampling", WARNING, slow[0], remedy)
    worst = max(
        float((own - plain).abs().max() / plain.abs().max())
        for own, plain in zip(*results, strict=True)
    )
    code = "Triton's kernels" if device.type == "cuda" else "compiled loops"
    text = f"{code}: largest relative difference from grid_sample {worst:.1e}"
    return Finding.of("sampling", worst <= _TOLERANCE, text, PROBLEM, "report it as a fault")
