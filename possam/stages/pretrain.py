"""Stage ``pretrain``: the small synthetic towers, from nothing."""

from pathlib import Path


def pretrain(*, out: Path, seed: int) -> None:
    """Train the three small SAMs and the small CLIP into ``out``, with provenance and quality."""
    from possam.synthetic.towers import rebuild_towers

    rebuild_towers(out, seed=seed)
