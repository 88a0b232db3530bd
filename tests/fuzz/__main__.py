"""Fuzz readers of foreign files; the exit code is 1 if one of them fails.

A reader runs in a process of its own, which is watched. A fault is a traceback other than an
InputError, an InputError that does not name a file of the input, files left by a refusal, the end
of the process (a crash, more than 20 seconds of CPU time, more than 6 GiB of memory), or what is
accepted here and refused by a later stage. The input of a fault is kept in --keep.

Input N of a seed is always the same: --first N --count 1 repeats it.
"""

import argparse
import contextlib
import io
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from pathlib import Path

from possam.runtime.errors import InputError
from tests.fuzz.mutate import mutate
from tests.fuzz.readers import READERS, Reader

CPU_SECONDS = 20
MEMORY = 6 << 30
COUNTERS = struct.Struct("qqqq")
"""Of the watched process: next input, refused, accepted, faults."""


class Fuzzer:
    """Runs one reader over the inputs of a seed, from ``first`` on."""

    def __init__(self, name: str, *, seed: int, first: int, keep: Path) -> None:
        self.name, self.seed, self.keep = name, seed, keep
        self.reader: Reader = READERS[name]
        self.shared = mmap.mmap(-1, COUNTERS.size)
        self.counters = [first, 0, 0, 0]
        self.folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
        with _quiet():
            self.reader.make(self.folder)
            found = [sorted(self.folder.glob(pattern)) for pattern in self.reader.files]
            self.sound = {path: path.read_bytes() for paths in found for path in paths}
            for path in self.sound:
                self._choose(path)
                self.reader.read(self.folder)()
                self._clear()

    def run(self, *, last: int, deadline: float) -> None:
        """Start watched processes until input ``last`` or the ``deadline`` (monotonic seconds)."""
        self._publish()
        while self.counters[0] < last and time.monotonic() < deadline:
            child = os.fork()
            if child == 0:
                self._work(last, deadline)
            _, status = os.waitpid(child, 0)
            self.counters = list(COUNTERS.unpack(self.shared[:]))
            if status:
                self._save(self.counters[0], f"the process ended: {_cause(status)}\n")
                self.counters[0] += 1
                self.counters[3] += 1
                self._publish()
                for path, content in self.sound.items():
                    path.write_bytes(content)
                self._clear()
        shutil.rmtree(self.folder)

    def _publish(self) -> None:
        self.shared[:] = COUNTERS.pack(*self.counters)

    def _work(self, last: int, deadline: float) -> None:
        """In the watched process: never returns."""
        code = 1
        try:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            with _quiet():
                while self.counters[0] < last and time.monotonic() < deadline:
                    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
                    self._one(self.counters[0])
                    self.counters[0] += 1
                    self._publish()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        finally:
            os._exit(code)

    def _one(self, number: int) -> None:
        rng = random.Random(f"{self.name} {self.seed} {number}")
        path = rng.choice(sorted(self.sound))
        content = mutate(path, self.sound[path], rng)
        path.write_bytes(content)
        self._choose(path)
        outcome, fault = 1, ""
        try:
            later = self.reader.read(self.folder)
        except InputError as error:
            if str(self.folder) not in str(error):
                fault = f"the message names no file: {error}\n"
            left = [name for name in self.reader.outputs if (self.folder / name).exists()]
            left += [str(found) for found in self.folder.rglob(".*.tmp")]
            if left:
                fault = f"refused, but {left} are there: {error}\n"
        except Exception:
            fault = traceback.format_exc()
        else:
            outcome = 2
            try:
                later()
            except Exception:
                fault = f"accepted, but refused later\n{traceback.format_exc()}"
        if fault:
            outcome = 3
            self._save(number, fault)
        self.counters[outcome] += 1
        path.write_bytes(self.sound[path])
        self._clear()

    def _choose(self, path: Path) -> None:
        self.folder.joinpath("mutated").write_text(str(path.relative_to(self.folder)))

    def _clear(self) -> None:
        for name in self.reader.outputs:
            for path in (self.folder / name, self.folder / f".{name}.partial"):
                shutil.rmtree(path, ignore_errors=True)

    def _save(self, number: int, fault: str) -> None:
        """Keep the mutated file and what happened."""
        path = self.folder / self.folder.joinpath("mutated").read_text()
        kept = self.keep / f"{self.name}-{self.seed}-{number}"
        kept.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, kept / path.name)
        (kept / "fault.txt").write_text(fault, errors="backslashreplace")


@contextlib.contextmanager
def _quiet():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def _cause(status: int) -> str:
    if not os.WIFSIGNALED(status):
        return f"exit code {os.WEXITSTATUS(status)}"
    number = os.WTERMSIG(status)
    loop = f": more than {CPU_SECONDS} s for one input" if number == signal.SIGPROF else ""
    return f"{signal.Signals(number).name}{loop}"


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument(
        "readers", nargs="*", metavar="READER", help=f"default: {' '.join(READERS)}"
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for each reader")
    parser.add_argument(
        "--count", type=int, default=1 << 40, help="inputs for each reader, at most"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), help="folder of faults")
    given = parser.parse_args()
    if unknown := set(given.readers) - set(READERS):
        parser.error(f"no reader {sorted(unknown)[0]!r}; valid choices: {', '.join(READERS)}")
    faults = 0
    for name in given.readers or READERS:
        start = time.monotonic()
        fuzzer = Fuzzer(name, seed=given.seed, first=given.first, keep=given.keep)
        fuzzer.run(last=given.first + given.count, deadline=start + 60 * given.minutes)
        number, refused, accepted, found = fuzzer.counters
        print(
            f"{name}: seed {given.seed}, {number - given.first} inputs in "
            f"{(time.monotonic() - start) / 60:.1f} min: {refused} refused, {accepted} accepted, "
            f"{found} faults" + (f" in {given.keep}" if found else ""),
            flush=True,
        )
        faults += found
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
