"""The folder of a run, which belongs to one identity, and the folders of runs that were set aside.

Finished steps are never deleted here. When a run's identity changes, what it has is set aside; when
the identity comes back, it is taken back. Both move the files of a run one by one, by renaming.
``identity.json`` says whose the files are: it is the last to leave a run's folder and the first to
come back. So a move that was interrupted by a kill is completed or undone by the next call.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

from possam.runtime.errors import InputError
from possam.runtime.files import hash_json, read_json, remove_leftovers, sha256_file, write_json
from possam.runtime.provenance import UNKNOWN, source_state
from possam.training.checkpoint_paths import checkpoints

PARTS = (
    *("checkpoints", "metrics.jsonl", "training.json", "weights.safetensors"),
    *("run.json", "run.snakemake", "provenance.json"),
)
"""Everything of a run but ``identity.json``; other files in its folder belong to its processes."""


class RunFiles:
    """Paths in the directory of a run, and what becomes of a run whose identity changes.

    Attributes:
        superseded: folder of the runs of other identities that were set aside.
        identity: JSON; ``identity`` (everything that the weights depend on), its ``hash``, the
            commit (``git``), and ``accepted_code``: a list of the changes of the code that the run
            went on after, each with the finished ``steps``, the ``time``, and for ``before`` and
            ``after`` the hashes of identity and code, and the commit. Written first.
        metrics: one JSON object per logged step.
        checkpoints: those of the run in progress.
        summary: of the finished run.
        weights: the trained weights; the run is complete when this file exists.
    """

    def __init__(self, directory: Path, *, superseded: Path) -> None:
        self.directory, self.superseded = directory, superseded
        self.identity = directory / "identity.json"
        self.metrics = directory / "metrics.jsonl"
        self.checkpoints = directory / "checkpoints"
        self.summary = directory / "training.json"
        self.weights = directory / "weights.safetensors"

    def held(self) -> dict[str, Any]:
        """The content of ``identity``; without ``hash`` if there is no such file."""
        content = read_json(self.identity) if self.identity.exists() else {}
        return {"identity": {}, "git": {"commit": UNKNOWN}, "accepted_code": [], **content}

    @property
    def accepted(self) -> list[dict[str, Any]]:
        """``accepted_code`` of ``identity``."""
        return list(self.held()["accepted_code"])

    @property
    def identities(self) -> frozenset[str]:
        """Hashes of the run's identity and of those that it was accepted from."""
        before = (change["before"]["identity"] for change in self.accepted)
        return frozenset((self.held()["hash"], *before))

    @property
    def is_finished(self) -> bool:
        """Whether the directory holds trained weights and their summary."""
        return self.weights.exists() and self.summary.exists()

    @property
    def has_work(self) -> bool:
        """Whether the directory holds trained weights or a checkpoint."""
        return self.weights.exists() or bool(checkpoints(self.checkpoints))

    def others(self) -> Iterator["RunFiles"]:
        """The runs that were set aside, those that are just being moved left out."""
        found = self.superseded.iterdir() if self.superseded.is_dir() else ()
        for folder in sorted(found):
            files = RunFiles(folder, superseded=self.superseded)
            if files.identity.exists() and not folder.name.startswith("."):
                yield files

    def begun(self, identity: Mapping[str, Any]) -> bool:
        """Whether the directory holds a checkpoint or the trained weights of this run."""
        return self.held().get("hash") == hash_json(identity) and self.has_work

    def device_of(
        self, on: Callable[[str], Mapping[str, Any]], device: str, *, accept_code: bool = False
    ) -> str:
        """The device of the run's identity: ``device``, or that on which it was finished before.

        Args:
            on: the identity of the run on a kind of device (``cpu``, ``cuda``).
            device: the kind of device in use.
            accept_code: whether the finished run may be of other code.
        """
        for files in (self, *self.others()):
            held = files.held()["identity"]
            own = held.get("device")
            if own not in (None, device) and files.is_finished:
                allowed = {"code"} if accept_code and files is self else set()
                if differences(held, on(own)).keys() <= allowed:
                    return str(own)
        return device

    def take_up(self, identity: Mapping[str, Any], *, accept_code: bool = False) -> None:
        """Make the run that is there, or one that was set aside, the one of ``identity``, if it is.

        ``accept_code``: the run in the directory counts as it even if its code is another.

        Raises:
            InputError: with ``accept_code``, there is no work, or it differs in more than the code.
        """
        own, held = hash_json(identity), self.held().get("hash")
        if held is not None:
            self._undo_half_a_move(held)
        if held != own:
            for files in self.others():
                if files.held()["hash"] == own:
                    self.take_back(files)
                    print(f"{self.directory}: taken back from {files.directory}", flush=True)
                    return
        if accept_code and not self.has_work:
            raise InputError(
                f"{self.directory}: --accept-code: no checkpoint and no weights to go on from; "
                "possam runs list shows the runs that were set aside, possam runs restore brings "
                "one back"
            )
        if accept_code and held != own:
            self._accept(identity)

    def _accept(self, identity: Mapping[str, Any]) -> None:
        from possam.training.checkpoint import newest_intact

        held = self.held()
        differing = differences(held["identity"], identity)
        if differing.keys() != {"code"}:
            others = "; ".join(text for name, text in differing.items() if name != "code")
            raise InputError(
                f"{self.directory}: --accept-code: the run there differs in more than its code: "
                f"{others}. Without --accept-code it is set aside, and the training starts anew"
            )
        if self.is_finished:
            steps = read_json(self.summary)["steps"]
        else:
            checkpoint = newest_intact(self.checkpoints, identities=self.identities)
            if checkpoint is None:
                raise InputError(f"{self.weights}: is there without {self.summary}; remove it")
            steps = checkpoint.step
        own, git = hash_json(identity), source_state()
        change = {
            "steps": steps,
            "time": datetime.now(tz=UTC).isoformat(timespec="seconds"),
            "before": _version(held["hash"], held["identity"], held["git"]),
            "after": _version(own, identity, git),
        }
        self._write(identity, [*held["accepted_code"], change])
        print(
            f"{self.directory}: accepted after step {steps} with other code: {own[:12]} "
            f"(commit {git['commit'][:10]}) instead of {held['hash'][:12]} (commit "
            f"{held['git']['commit'][:10]}); its results say so",
            flush=True,
        )

    def _write(self, identity: Mapping[str, Any], accepted: list[dict[str, Any]]) -> None:
        git = source_state()
        content = {"hash": hash_json(identity), "identity": identity, "git": git}
        write_json(self.identity, {**content, "accepted_code": accepted})

    def prepare(self, identity: Mapping[str, Any]) -> None:
        """Make the directory ready for the run; the work of another identity is set aside."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.take_up(identity)
        remove_leftovers(self.directory)
        remove_leftovers(self.checkpoints)
        if self.held().get("hash") == hash_json(identity):
            return
        if target := self.set_aside():
            print(
                f"{self.directory}: holds another run; it is set aside, and training starts over. "
                f"To remove it: possam runs remove {target}. To go on from it although the code "
                f"has changed: possam runs restore {target}, then possam train with --accept-code",
                flush=True,
            )
        self._write(identity, [])

    def finish(self) -> dict[str, Any] | None:
        """The summary of a finished run, None if it is not finished.

        If other code was accepted after its last step, summary and weights say so afterwards.
        """
        if not self.is_finished:
            return None
        held, summary = self.held(), dict(read_json(self.summary))
        if summary["identity"] != held["hash"]:
            from possam.training.checkpoint import accept_weights

            accept_weights(self.weights, held["hash"], held["accepted_code"])
            summary["identity"] = held["hash"]
            summary["weights_sha256"] = sha256_file(self.weights)
            write_json(self.summary, summary)
        return summary

    def set_aside(self) -> Path | None:
        """Move the run that is there into ``superseded``; None if it has no work to keep."""
        held = self.held().get("hash")
        target = self._place(held or f"unknown-{uuid4().hex}")
        if not self.has_work and not target.exists():
            for part in PARTS:
                path = self.directory / part
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            return None
        if held is None:
            write_json(self.identity, {"hash": target.name})
        target.mkdir(parents=True, exist_ok=True)
        _move(self.directory, target)
        os.replace(self.identity, target / self.identity.name)
        return target

    def take_back(self, files: "RunFiles") -> None:
        """Move a run that was set aside into the directory; the one that is there is set aside."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.set_aside()
        os.replace(files.identity, self.identity)
        self._fetch(files.directory)

    def _undo_half_a_move(self, held: str) -> None:
        """Bring back what a killed process had moved, or had not moved back yet."""
        if (folder := self._place(held)).is_dir():
            self._fetch(folder)

    def _fetch(self, folder: Path) -> None:
        _move(folder, self.directory)
        with contextlib.suppress(OSError):  # other runs stay
            for empty in (folder, *folder.parents[:3]):
                empty.rmdir()

    def _place(self, held: str) -> Path:
        """The folder to set the run of that hash aside in: the first that holds no whole run."""
        number, folder = 1, self.superseded / held[:12]
        while (folder / self.identity.name).exists():
            number += 1
            folder = self.superseded / f"{held[:12]}-{number}"
        return folder


def _move(source: Path, target: Path) -> None:
    for part in PARTS:
        if (source / part).exists():
            os.replace(source / part, target / part)


def _version(hash: str, identity: Mapping[str, Any], git: Mapping[str, Any]) -> dict[str, Any]:
    return {"identity": hash, "code": identity["code"], "git": git}


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """What differs between two identities: the key at the top -> ``loss.weight: 1.0 -> 2.0, ...``.

    Lists are compared as a whole.
    """
    keys = dict.fromkeys((*before, *after))
    found = {key: _differences(key, before.get(key), after.get(key)) for key in keys}
    return {key: ", ".join(texts) for key, texts in found.items() if texts}


def _differences(path: str, before: Any, after: Any) -> list[str]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = dict.fromkeys((*before, *after))
        return [
            text
            for key in keys
            for text in _differences(f"{path}.{key}", before.get(key), after.get(key))
        ]
    return [] if before == after else [f"{path}: {before} -> {after}"]
