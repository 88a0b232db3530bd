"""A SLURM cluster of one node with accounting, in a folder, for as long as a test needs it.

The daemons are the distribution's (slurm-wlm, slurmdbd, munge, mariadb-server). Nothing of the
system's own installation is touched: every socket, port, key and state file is the cluster's own.
"""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

from possam.params.slurm import Kind

NEEDED = {
    "slurm-wlm": (
        "slurmctld",
        "slurmd",
        "sbatch",
        "srun",
        "squeue",
        "sacct",
        "scontrol",
        "scancel",
    ),
    "slurmdbd": ("slurmdbd", "sacctmgr"),
    "munge": ("munged",),
    "mariadb-server": ("mariadbd", "mariadb-install-db", "mariadb"),
}
"""Debian's packages, and the commands of each that are used."""

KINDS = get_args(Kind)
"""Each is also a partition that admits only jobs of the QOS of the same name. The default partition
``all`` admits every job."""

_GPUS = 8
_SYSTEM = ("/usr/sbin", "/sbin")
_STARTING_S = 60.0


def why_not() -> str | None:
    """Why no cluster can be started here; None if it can."""
    if os.geteuid() != 0:
        return "a SLURM cluster is started by root"
    if missing := missing_packages():
        return f"missing: apt-get install {' '.join(missing)}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            make_gpu(Path(folder) / "gpu")
        except OSError as error:
            return f"device files cannot be made here ({error.strerror}), pretended GPUs are such"
    return None


def make_gpu(path: Path) -> None:
    """A pretended GPU: a device file like ``/dev/null``."""
    os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))


def missing_packages() -> list[str]:
    """Debian's packages that have to be installed first."""
    path = os.pathsep.join([os.environ["PATH"], *_SYSTEM])
    return [
        package
        for package, commands in NEEDED.items()
        if any(shutil.which(command, path=path) is None for command in commands)
    ]


class Cluster:
    """The running cluster. ``environment`` makes SLURM's commands talk to it."""

    def __init__(self, folder: Path, *, cpus: int = 3) -> None:
        self.folder, self.cpus, self.commands = folder, cpus, folder / "bin"
        self.node = socket.gethostname().split(".")[0]
        self.environment = {
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": os.pathsep.join([str(self.commands), os.environ["PATH"], *_SYSTEM]),
        }
        self._daemons: list[subprocess.Popen[bytes]] = []

    def command(self, *command: str, check: bool = True) -> str:
        """Standard output of one of SLURM's commands."""
        done = subprocess.run(
            command,
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"{command} -> {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout.strip()

    def _daemon(self, name: str, *arguments: str) -> None:
        with open(self.folder / f"{name}.out", "ab") as log:
            process = subprocess.Popen(
                [name, *arguments],
                env={**os.environ, **self.environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._daemons.append(process)

    def _until(self, what: str, *command: str) -> None:
        deadline = time.monotonic() + _STARTING_S
        while True:
            done = subprocess.run(
                command,
                env={**os.environ, **self.environment},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0:
                return
            if time.monotonic() > deadline:
                logs = "\n".join(
                    f"== {path.name}\n{path.read_text(errors='replace')[-2000:]}"
                    for path in sorted(self.folder.glob("*.out"))
                )
                raise AssertionError(f"{what} does not start: {done.stdout}{done.stderr}\n{logs}")
            time.sleep(0.2)

    def start(self) -> None:
        """Write the configuration and start the daemons, each once the one before answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # slurmdbd reaches the database as another user through a socket below this folder.
        for path in (self.folder, *self.folder.parents):
            if path.stat().st_uid == os.geteuid() and path != Path("/"):
                path.chmod(path.stat().st_mode | 0o711)
        self._configure()
        self._munge()
        self._database()
        self._daemon("slurmdbd", "-D")
        self._until("slurmdbd", "sacctmgr", "--immediate", "--noheader", "show", "cluster")
        allowed = f"qos=normal,{','.join(KINDS)}"
        for what in (
            ("add", "cluster", "possam"),
            ("add", "qos", ",".join(KINDS)),
            ("modify", "user", "where", "name=root", "set", allowed),
        ):
            self.command("sacctmgr", "--immediate", *what)
        self._daemon("slurmctld", "-D", "-c")
        self._until("slurmctld", "scontrol", "ping")
        self._daemon("slurmd", "-D", "-N", self.node)
        ready = 'test "$(sinfo --noheader --format=%T | head -n 1)" = idle'
        self._until("slurmd", "bash", "-c", ready)

    def _configure(self) -> None:
        folder = self.folder
        for name in ("bin", "state", "spool", "munge", "database"):
            (folder / name).mkdir()
        # Snakemake's executor takes SLURM_CONF from the environment of its own srun.
        srun = self.commands / "srun"
        srun.write_text(
            f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun")} "$@"\n'
        )
        srun.chmod(0o755)
        for number in range(_GPUS):
            make_gpu(folder / f"gpu{number}")
        ports = _free_ports(3)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 10
        settings = {
            "ClusterName": "possam",
            "SlurmctldHost": f"{self.node}(127.0.0.1)",
            "SlurmctldPort": ports[0],
            "SlurmdPort": ports[1],
            "AuthType": "auth/munge",
            # A job that is put back may start again once its credential has expired.
            "AuthInfo": f"socket={folder}/munge/socket,cred_expire=5",
            "CredType": "cred/munge",
            "SlurmUser": "root",
            "SlurmdUser": "root",
            "StateSaveLocation": folder / "state",
            "SlurmdSpoolDir": folder / "spool",
            "SlurmctldPidFile": folder / "slurmctld.pid",
            "SlurmdPidFile": folder / "slurmd.pid",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/none",
            "JobAcctGatherType": "jobacct_gather/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU_Memory",
            "SchedulerType": "sched/backfill",
            "SchedulerParameters": "sched_interval=2,bf_interval=2,batch_sched_delay=0",
            "GresTypes": "gpu",
            "ReturnToService": 2,
            "KillWait": 2,
            "MpiDefault": "none",
            "SwitchType": "switch/none",
            # A driver that is a job waits beside the two processes that use the processor.
            "SlurmdParameters": "config_overrides",
            "EnforcePartLimits": "ALL",
            "AccountingStorageEnforce": "qos",
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageTRES": "gres/gpu",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": ports[2],
            "AccountingStoragePass": folder / "munge" / "socket",
        }
        lines = [f"{key}={value}" for key, value in settings.items()]
        lines += [
            f"NodeName={self.node} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={self.cpus} "
            f"RealMemory={memory} Gres=gpu:a100:{_GPUS} State=UNKNOWN",
            f"PartitionName=all Nodes={self.node} Default=YES MaxTime=INFINITE State=UP",
            *(f"PartitionName={kind} Nodes={self.node} AllowQos={kind} State=UP" for kind in KINDS),
        ]
        (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
        (folder / "gres.conf").write_text(
            f"NodeName={self.node} Name=gpu Type=a100 File={folder}/gpu[0-{_GPUS - 1}]\n"
        )
        database = folder / "slurmdbd.conf"
        database.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge/socket\nDbdHost=localhost\n"
            f"DbdAddr=127.0.0.1\nDbdPort={ports[2]}\nSlurmUser=root\nPidFile={folder}/slurmdbd.pid\n"
            "StorageType=accounting_storage/mysql\nStorageHost=localhost\nStorageUser=root\n"
            "StorageLoc=accounting\n"
        )
        database.chmod(0o600)

    def _munge(self) -> None:
        folder = self.folder / "munge"
        folder.chmod(0o711)
        key = folder / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o400)
        self._daemon(
            "munged",
            "--foreground",
            "--force",
            f"--socket={folder}/socket",
            f"--key-file={key}",
            f"--pid-file={folder}/pid",
            f"--log-file={folder}/log",
            f"--seed-file={folder}/seed",
        )
        self._until("munged", "munge", "--no-input", f"--socket={folder}/socket")

    def _database(self) -> None:
        data, socket_path = self.folder / "database", self.folder / "database.socket"
        user = pwd.getpwnam("mysql")
        os.chown(data, user.pw_uid, user.pw_gid)
        installed = subprocess.run(
            [
                "mariadb-install-db",
                "--no-defaults",
                "--user=mysql",
                f"--datadir={data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert installed.returncode == 0, installed.stdout + installed.stderr
        inside = data / "socket"
        self._daemon(
            "mariadbd",
            "--no-defaults",
            "--user=mysql",
            f"--datadir={data}",
            f"--socket={inside}",
            f"--pid-file={data}/pid",
            "--skip-networking",
            "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
        )
        socket_path.symlink_to(inside)
        self._until(
            "mariadbd", "mariadb", "--no-defaults", f"--socket={inside}", "--execute=select 1"
        )
        # slurmdbd's client library takes the socket from here.
        self.environment["MYSQL_UNIX_PORT"] = str(inside)

    def stop(self) -> None:
        """End every job and daemon, and wait for them; nothing is left running."""
        with contextlib.suppress(AssertionError, OSError):
            self.command("scancel", "--user=root", check=False)
            deadline = time.monotonic() + 20
            while self.command("squeue", "--noheader", check=False):
                if time.monotonic() > deadline:
                    break
                time.sleep(0.2)
        for process in reversed(self._daemons):
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                try:
                    process.wait(20)
                    break
                except subprocess.TimeoutExpired:
                    continue
        self._daemons.clear()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster in ``folder``; removed with everything in it at the end."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
