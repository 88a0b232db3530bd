"""The directory of a run: its files, and which run it belongs to."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from possam.runtime.files import hash_json, read_json, write_json
from possam.training.checkpoint import latest_checkpoint, remove_leftovers


@dataclass(frozen=True)
class RunFiles:
    """Paths of the directory of a run, which belongs to one identity."""

    directory: Path

    @property
    def identity(self) -> Path:
        """Everything that the weights depend on: ``{hash, identity}``; written first."""
        return self.directory / "identity.json"

    @property
    def metrics(self) -> Path:
        """One JSON object per logged step."""
        return self.directory / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints of the run in progress."""
        return self.directory / "checkpoints"

    @property
    def summary(self) -> Path:
        """Summary of the finished run."""
        return self.directory / "training.json"

    @property
    def weights(self) -> Path:
        """The trained weights; their presence says that the run is complete."""
        return self.directory / "weights.safetensors"

    def begun(self, identity: Mapping[str, Any]) -> bool:
        """Whether it holds a checkpoint or the trained weights of this run."""
        return (
            self.identity.exists()
            and read_json(self.identity).get("hash") == hash_json(identity)
            and (self.weights.exists() or latest_checkpoint(self.checkpoints) is not None)
        )

    def prepare(self, identity: Mapping[str, Any]) -> None:
        """Make the directory ready for the run, and empty it if it holds another run."""
        self.directory.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.directory)
        remove_leftovers(self.checkpoints)
        own = hash_json(identity)
        found = read_json(self.identity).get("hash") if self.identity.exists() else None
        if found != own:
            files = [self.weights, self.summary, self.metrics]
            if found or self.checkpoints.exists() or any(path.exists() for path in files):
                print(
                    f"{self.directory}: holds another run ({found or 'unknown'}, not {own}); "
                    "training starts over",
                    flush=True,
                )
            for path in files:
                path.unlink(missing_ok=True)
            if self.checkpoints.exists():
                shutil.rmtree(self.checkpoints)
            # last, so that a process killed on the way starts over again
            write_json(self.identity, {"hash": own, "identity": identity})
