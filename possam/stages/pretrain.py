"""Stage ``pretrain``: the small synthetic towers."""

from pathlib import Path


def pretrain(*, out: Path, seed: int, start: Path | None = None) -> None:
    """Train the three small SAMs and the small CLIP into ``out``, with provenance and quality.

    ``start``: a folder of towers to go on from; None: they are trained from nothing.

    Raises:
        InputError: ``start`` lacks a tower.
    """
    from possam.synthetic.towers import rebuild_towers

    rebuild_towers(out, seed=seed, start=start)
