"""Exceptions that a user can act on.

Every message names the file or field at fault and what to do about it. The command line prints the
message alone and exits with code 2; anything that is not a :class:`PossamError` is a bug and keeps
its traceback.
"""


class PossamError(Exception):
    """Base of all errors that a user can act on."""


class InputError(PossamError):
    """A file, parameter or argument is missing, malformed or inconsistent."""


class ChecksumError(InputError):
    """A file's content is not what its checksum says."""


class WrongVariantError(InputError):
    """Weights of another architecture than the one that was asked for."""


class TrainingError(PossamError):
    """Training cannot go on (for example: the loss is not finite)."""


class JobFailedError(PossamError):
    """A job on a cluster ended without a result, and is not tried again."""
