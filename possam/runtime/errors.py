"""Exceptions whose message names the file or field at fault and the remedy.

The command line prints only their message; any other exception is a bug and keeps its traceback.
"""


class PossamError(Exception):
    """Base of all errors that a user can act on."""


class InputError(PossamError):
    """A file, parameter or argument is missing, malformed or inconsistent."""


class NotPermittedError(InputError):
    """This user may not read a file, which may well be a good one."""


class ChecksumError(InputError):
    """A file's content does not match its checksum."""


class WrongVariantError(InputError):
    """Weights belong to another architecture than the requested one."""


class TrainingError(PossamError):
    """Training cannot continue (for example because the loss is not finite)."""


class JobFailedError(PossamError):
    """A job on a cluster ended without a result and is not submitted again."""
