"""A training that begins with the weights that another run has trained."""

from collections.abc import Mapping
from pathlib import Path

from possam.model.possam import PosSAM
from possam.runtime.errors import InputError, WrongVariantError
from possam.runtime.files import sha256_file
from possam.training.checkpoint import load_trained


def start_from_run(model: PosSAM, path: Path, *, sha256: str, frozen: Mapping[str, str]) -> None:
    """Put the weights of a trained run into ``model``: all of them, exactly.

    Args:
        model: of the same options; after an error it is as it was.
        path: the run's ``weights.safetensors``.
        sha256: of this file, as the run's record has it.
        frozen: tower name -> hash of the towers that ``model`` is trained over.

    Raises:
        InputError: a file that is missing, damaged or not the recorded one.
        WrongVariantError: weights over other towers, or of a model of other options.
    """
    trained = load_trained(path, frozen=frozen).state_dict()
    if sha256_file(path) != sha256:
        raise InputError(f"{path}: not the weights of its run.json; train this run again")
    own = model.state_dict()
    other = sorted(
        name
        for name in own.keys() | trained.keys()
        if name not in own or name not in trained or own[name].shape != trained[name].shape
    )
    if other:
        raise WrongVariantError(
            f"{path}: a model of other options: {len(other)} tensors differ, first {other[0]}; "
            "give both runs the same model, or start from another run"
        )
    model.load_state_dict(trained)
    print(f"{path}: all {len(trained)} tensors taken over", flush=True)
