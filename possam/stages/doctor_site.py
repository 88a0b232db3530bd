"""What ``possam doctor`` examines of the machine and the site, whatever the scale."""

import contextlib
import getpass
import importlib
import importlib.util
import locale
import os
import resource
import shutil
import socket
import sqlite3
import sys
import tempfile
import urllib.parse
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from possam.runtime.caches import numba_folder, write_fault
from possam.runtime.environment import Environment, apply_mlflow_defaults
from possam.runtime.errors import InputError
from possam.runtime.faults import HOME, LOCALE, explain, fault_of, hidden_packages
from possam.runtime.findings import OK, PROBLEM, WARNING, Check, Finding
from possam.runtime.locks import require_locks
from possam.runtime.pools import sharing_fault
from possam.runtime.provenance import git_fault
from possam.runtime.secrets import redact

LOCK = Path("requirements.lock")
_PYTHON = ((3, 11), (3, 12), (3, 13), (3, 14))
_ONLY_CUDA = ("nvidia-", "cuda-", "triton")
"""Beginnings of the names of packages that a torch without CUDA does without (make TORCH=cpu)."""

_WRITTEN = ("data", "results", "reports", ".snakemake", ".possam")
"""Folders of a checkout in which the pipeline writes."""

_IMPORTED = ("numpy", "scipy", "PIL", "pandas", "pyarrow", "numba", "torch", "torchvision")
_CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_FEW_FILES, _FEW_PROCESSES = 1024, 512
_LITTLE = 200_000_000
"""Bytes of room for temporary files."""

_UI_PORT = 5000
_SLURM_PLUGIN = "snakemake_executor_plugin_slurm"


def _python() -> Finding:
    found, good = sys.version.split()[0], sys.version_info[:2] in _PYTHON
    valid = ", ".join(f"{major}.{minor}" for major, minor in _PYTHON)
    text = found if good else f"{found}; one of {valid} is needed"
    return Finding.of("python", good, text, PROBLEM, "rm -r .venv; make setup")


def _python_path() -> Iterator[Finding]:
    for entry, names in hidden_packages().items():
        text = f"PYTHONPATH names {entry}, which hides {_some(names)} of this environment"
        remedy = "unset PYTHONPATH (module purge); make does not hear it"
        yield Finding("python path", PROBLEM, text, remedy)


def _without_cuda() -> bool:
    """Whether torch is PyTorch's build for CPUs only, whose version says so."""
    try:
        return metadata.version("torch").endswith("+cpu")
    except metadata.PackageNotFoundError:
        return False


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    if not LOCK.is_file():
        text = f"{LOCK} is not here: versions were not compared"
        yield Finding("packages", WARNING, text, "call possam in the repository")
        return
    try:
        own = metadata.requires("possam") or []
    except metadata.PackageNotFoundError:
        own = []
    needed = {
        canonicalize_name(requirement.name)
        for requirement in map(Requirement, own)
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
            if _without_cuda() and canonicalize_name(requirement.name).startswith(_ONLY_CUDA):
                continue
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


def _imports() -> Iterator[Finding]:
    """Packages that are installed but do not load: built for another system, or half removed."""
    faults: dict[str, list[str]] = {}
    for name in _IMPORTED:
        try:
            importlib.import_module(name)
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            faults.setdefault(reason, []).append(name)
    for reason, names in faults.items():
        remedy = "unset PYTHONPATH" if hidden_packages() else "make setup"
        yield Finding("imports", PROBLEM, f"{', '.join(names)}: not loaded ({reason})", remedy)


def _existing(folder: Path) -> Path:
    return next(path for path in (folder, *folder.absolute().parents) if path.is_dir())


def _folders() -> Iterator[Finding]:
    """Whether the folders that are written can be written, and locked."""
    faults: dict[tuple[str, str], list[str]] = {}
    good = []
    for folder in dict.fromkeys(_existing(Path(name)).absolute() for name in _WRITTEN):
        if (error := write_fault(folder)) is None:
            good.append(folder)
            continue
        what, remedy = fault_of(error) or ("it cannot be written", "make it writable")
        faults.setdefault((f"{what} ({error.strerror or error})", remedy), []).append(str(folder))
    for (what, remedy), places in faults.items():
        yield Finding("folders", PROBLEM, f"{', '.join(places)}: {what}", remedy)
    if not faults:
        yield Finding("folders", OK, f"{', '.join(_WRITTEN)} can be written")
    for folder in good:
        try:
            require_locks(folder)
        except InputError as no_locks:
            fault, _, remedy = str(no_locks).partition("; ")
            yield Finding("locks", PROBLEM, fault, remedy)
            return
    if good:
        yield Finding("locks", OK, "files can be locked here")


def _temporary() -> Iterator[Finding]:
    """The folder of temporary files, and what processes share."""
    matter, asked = "temporary files", os.environ.get("TMPDIR")
    folder = Path(tempfile.gettempdir())
    if asked and folder != Path(asked).absolute():
        why = write_fault(Path(asked)) if Path(asked).is_dir() else "no such folder"
        text = f"TMPDIR={asked} cannot be used ({why}); Python takes {folder}"
        yield Finding(matter, WARNING, text, "make that folder, or set another TMPDIR")
    if (error := write_fault(folder)) is not None:
        fault, _, remedy = (explain(error) or str(error)).partition("; ")
        yield Finding(matter, PROBLEM, f"{folder}: {fault}", f"{remedy}; or set another TMPDIR")
        return
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    text, remedy = f"{folder}, {free / 1e9:.1f} GB free", ""
    if status.f_flag & os.ST_NOEXEC:
        text += ", where no program may run (noexec)"
        remedy = "only torch.compile minds: set TORCHINDUCTOR_CACHE_DIR elsewhere"
    good = free >= _LITTLE
    remedy = remedy if good else "set TMPDIR to a folder with more room"
    yield Finding(matter, OK if good else WARNING, text, remedy)
    if (shared := sharing_fault()) is not None:
        text = f"{shared[0]}: every command works in one process"
        yield Finding("processes", WARNING, text, shared[1])
    else:
        yield Finding("processes", OK, "several can work together")


def _home() -> Iterator[Finding]:
    """The user's name and home folder, without which Snakemake and DVC do not start."""
    cache, where = os.environ.get("XDG_CACHE_HOME"), "XDG_CACHE_HOME"
    try:
        getpass.getuser()
        home = Path.home()
        if not cache:
            cache, where = str(home), "HOME"
        fault = write_fault(Path(cache)) if Path(cache).is_dir() else "no such folder"
    except (KeyError, OSError, RuntimeError) as error:
        what, remedy = HOME
        yield Finding("home", PROBLEM, f"{what} ({error}): Snakemake and DVC need both", remedy)
        return
    if fault is not None:
        text = f"{where}={cache} cannot be written ({fault}): Snakemake and DVC keep files there"
        remedy = "export HOME, or XDG_CACHE_HOME and MPLCONFIGDIR, to a writable folder"
        yield Finding("home", PROBLEM, text, remedy)


def _caches() -> Finding:
    try:
        folder = numba_folder()
    except ImportError:
        return Finding("caches", WARNING, "not known without numba", "see imports above")
    if folder is None:
        text = "no cache folder of numba can be written: every process compiles its loops again"
        return Finding("caches", WARNING, text, "set NUMBA_CACHE_DIR to a writable folder")
    return Finding("caches", OK, f"compiled loops are kept in {folder}")


def _git() -> Finding:
    fault, _, remedy = (git_fault(Path()) or "").partition("; ")
    text = f"{fault}: results do not name their commit" if fault else "results name their commit"
    return Finding.of("git", not fault, text, WARNING, remedy)


def _limits() -> Finding:
    """Open files, processes, and sizes that the shell has limited (``ulimit``)."""
    faults = []
    for flag, limit, least, what in (
        ("n", resource.RLIMIT_NOFILE, _FEW_FILES, "open files"),
        ("u", resource.RLIMIT_NPROC, _FEW_PROCESSES, "processes"),
        ("f", resource.RLIMIT_FSIZE, 1 << 40, "bytes per file"),
        ("v", resource.RLIMIT_AS, 1 << 36, "bytes of address space"),
    ):
        soft, _ = resource.getrlimit(limit)
        if soft != resource.RLIM_INFINITY and soft < least:
            value = least if flag in "nu" else "unlimited"
            faults.append((f"{soft} {what}", f"ulimit -{flag} {value}"))
    text = "at most " + ", ".join(fault for fault, _ in faults) if faults else "none is low"
    remedy = "; ".join(command for _, command in faults)
    return Finding.of("limits", not faults, text, WARNING, remedy)


def _locale() -> Finding:
    names = {
        "files": sys.getfilesystemencoding(),
        "output": getattr(sys.stdout, "encoding", None) or "utf-8",
        "texts": locale.getpreferredencoding(False),
    }
    other = [f"{what} in {name}" for what, name in names.items() if "utf" not in name.lower()]
    text = f"{', '.join(other)}: {LOCALE[0]}" if other else "UTF-8"
    return Finding.of("locale", not other, text, WARNING, LOCALE[1])


def _certificates() -> Iterator[Finding]:
    for name in _CERTIFICATES:
        if (file := os.environ.get(name)) and not os.access(file, os.R_OK):
            text = f"{name}={file}: no such file, or it cannot be read"
            yield Finding("certificates", PROBLEM, text, f"correct {name}, or unset it")


def _mlflow() -> Iterator[Finding]:
    uri = Environment.load().tracking_uri
    if importlib.util.find_spec("mlflow") is None:
        yield Finding("mlflow", WARNING, "not installed: nothing is tracked", "make setup")
        return
    kind, shown = urllib.parse.urlsplit(uri).scheme, redact(uri)
    checks = {"sqlite": _sqlite_fault, "http": _server_fault, "https": _server_fault}
    fault = checks[kind](uri) if kind in checks else None
    remedy = "set POSSAM_TRACKING_URI (or MLFLOW_TRACKING_URI); only possam track needs it"
    yield Finding.of("mlflow", not fault, f"{shown}: {fault}" if fault else shown, PROBLEM, remedy)
    if kind == "sqlite":
        try:
            socket.create_server(("127.0.0.1", _UI_PORT)).close()
        except OSError as error:
            text = f"port {_UI_PORT}, where make ui shows the runs: {error.strerror}"
            yield Finding("mlflow", WARNING, text, f"possam ui --port {_UI_PORT + 1}")


def _sqlite_fault(uri: str) -> str | None:
    path = Path(uri.removeprefix("sqlite:///").partition("?")[0])
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
    """Ask the server as MLflow does, with the user's credentials, proxies and certificates."""
    apply_mlflow_defaults()
    from mlflow import MlflowClient

    once = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    with contextlib.ExitStack() as stack:
        for name, value in once.items():
            stack.callback(os.environ.__setitem__, name, os.environ[name])
            os.environ[name] = value
        try:
            MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)
        except Exception as error:
            return " ".join(redact(error).split())[:300]
    return None


def _which() -> Iterator[Finding]:
    """The command ``which``, which Snakemake's plugin for SLURM calls as soon as it is imported."""
    if importlib.util.find_spec(_SLURM_PLUGIN) and shutil.which("which") is None:
        text = f"no such command; without it Snakemake does not start ({_SLURM_PLUGIN} calls it)"
        yield Finding("which", PROBLEM, text, "install its package (Debian: debianutils)")


CHECKS: tuple[Check, ...] = (
    ("python", _python),
    ("python path", _python_path),
    ("packages", _packages),
    ("imports", _imports),
    ("folders", _folders),
    ("temporary files", _temporary),
    ("home", _home),
    ("caches", _caches),
    ("git", _git),
    ("limits", _limits),
    ("locale", _locale),
    ("which", _which),
    ("certificates", _certificates),
    ("mlflow", _mlflow),
)
