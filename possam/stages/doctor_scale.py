"""What ``possam doctor`` examines for one scale: GPUs, SLURM, room, weights, data, downloads."""

import http.client
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from possam.assets.inventory import free_bytes, gigabytes, scale_assets, take_inventory
from possam.assets.roots import find
from possam.params.data import load_data
from possam.params.layout import Layout
from possam.params.plan import load_plan
from possam.params.project import Project
from possam.pipeline.graph import Graph
from possam.pipeline.plan import make_plan
from possam.runtime.errors import InputError
from possam.runtime.files import read_json
from possam.runtime.findings import OK, PROBLEM, WARNING, Check, Finding
from possam.runtime.gpu_driver import driver_fault, driver_version, minimum_driver
from possam.runtime.provenance import usable_cores
from possam.runtime.secrets import split_credentials
from possam.runtime.short_commands import ask

_SLURM = ("sbatch", "squeue", "scancel", "scontrol", "sinfo", "sacct")
_TIMEOUT_S = 20.0
_ANSWER_S = 5.0
_SHM = Path("/dev/shm")
_SHM_BYTES = 1 << 30


def checks(project: Project) -> list[Check]:
    """Everything that a scale needs, beside what every scale needs (``doctor_site``)."""

    def machines() -> Iterator[Finding]:
        gpus, slurm = _gpu_names(), _slurm()
        if slurm.state == PROBLEM and (gpus or load_plan(project)[1].unit != "GPU"):
            slurm = replace(slurm, state=WARNING)  # not needed: trainings can run here
        yield _gpus(project, gpus, slurm)
        yield from _driver(project, gpus, slurm)
        yield slurm

    return [
        ("gpus", machines),
        ("disk", lambda: _disk(project)),
        ("memory", lambda: _memory(project)),
        ("/dev/shm", lambda: _shared_memory(project)),
        ("cores", lambda: _cores(project)),
        ("weights", lambda: _weights(project)),
        ("data roots", lambda: _data_roots(project)),
        ("network", lambda: _network(project)),
    ]


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


def _slurm() -> Finding:
    missing = [command for command in _SLURM if not shutil.which(command)]
    if len(missing) == len(_SLURM):
        text = "no commands; jobs run on this machine only"
        return Finding("slurm", WARNING, text, "log in to the cluster for --profile slurm")
    if missing:
        remedy = "install SLURM's client commands (package slurm-client)"
        return Finding("slurm", PROBLEM, f"missing: {', '.join(missing)}", remedy)
    answer = ask("sinfo", "--noheader", "--format=%P %a %D", seconds=_TIMEOUT_S)
    output = f"{answer.output}\n{answer.errors}".strip()
    if answer.code != 0 or not output:
        text = f"sinfo: {output.splitlines()[0] if output else 'no partition'}"
        remedy = "is slurmctld running, and this machine known to it?"
        return Finding("slurm", PROBLEM, text, remedy)
    partitions = len(output.splitlines())
    answer = ask("sacct", "--noheader", "--allocations", "--format=JobID", seconds=_TIMEOUT_S)
    output = f"{answer.output}\n{answer.errors}".strip()
    if answer.code != 0 or "disabled" in output:
        text = f"sacct: {output.splitlines()[0] if output else f'exit code {answer.code}'}"
        remedy = "job states are read from accounting: set AccountingStorageType to slurmdbd"
        return Finding("slurm", PROBLEM, text, remedy)
    return Finding("slurm", OK, f"{partitions} partitions, accounting answers")


def _disk(project: Project) -> Finding:
    try:
        plan = make_plan(Graph(folder=project.folder, project=project), project.name, [])
    except InputError as error:  # in a data root; _data_roots names it
        remedy = "correct the data root named below"
        return Finding("disk", WARNING, f"not compared with a plan: {error}", remedy)
    free, needed = free_bytes(Layout(project).assets), plan.disk.to_write.bytes
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


def _shared_memory(project: Project) -> Iterator[Finding]:
    """Where the processes that read images of a training put them."""
    workers = project.scale.training.workers
    if not workers or not _SHM.is_dir():
        return  # nobody needs it, or `processes` has named it
    free = shutil.disk_usage(_SHM).free
    text = f"{gigabytes(free)} free for images that {workers} processes read ahead"
    remedy = "enlarge it (--shm-size=8g, --ipc=host of a container), or set training.workers: 0"
    yield Finding.of("/dev/shm", free >= _SHM_BYTES, text, WARNING, remedy)


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


def _network(project: Project) -> Iterator[Finding]:
    """Whether the hosts of files that are still to be downloaded answer."""
    held = take_inventory(project, scale_assets(project), load_data(project))
    hosts: dict[str, str] = {}
    for one in held:
        for url in one.asset.urls if one.to_download else ():
            if (host := urllib.parse.urlsplit(url).hostname) and url.startswith("http"):
                hosts.setdefault(host, url)
    if not hosts:
        return
    with ThreadPoolExecutor(len(hosts)) as pool:
        faults = dict(zip(hosts, pool.map(_no_answer, hosts.values()), strict=True))
    silent = [f"{host} ({fault})" for host, fault in faults.items() if fault]
    text = f"no answer from {', '.join(silent)}" if silent else f"{', '.join(hosts)} answer"
    remedy = "check http_proxy, https_proxy, no_proxy and SSL_CERT_FILE, or bring the files by hand"
    yield Finding.of("network", not silent, text, WARNING, remedy)


def _no_answer(url: str) -> str | None:
    """Why the server of ``url`` does not answer; None if it does, be it with a refusal."""
    request = urllib.request.Request(split_credentials(url)[0], method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_ANSWER_S).close()
    except urllib.error.HTTPError as error:
        return f"the proxy: {error.reason}" if error.code == 407 else None
    except (OSError, http.client.HTTPException, ValueError) as error:
        return " ".join(str(getattr(error, "reason", error)).split())
    return None
