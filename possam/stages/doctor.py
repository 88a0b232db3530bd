"""Stage ``doctor``: whether this machine can run a scale; one line per matter, with a remedy.

It imports little, and no check can end it: a check that fails is itself a finding.
"""

from collections.abc import Sequence

from possam.runtime.errors import InputError, PossamError
from possam.runtime.faults import explain
from possam.runtime.findings import PROBLEM, Check, Finding, print_findings


def doctor(scale: str) -> int:
    """Print what is found. Returns 1 if one finding is a problem, else 0.

    Raises:
        InputError: there is no such scale, or its parameters are wrong; the machine's findings are
            printed before.
    """
    from possam.stages.doctor_site import CHECKS

    findings, wrong = perform(CHECKS), None
    try:
        from possam.params.project import Project
        from possam.stages.doctor_scale import checks

        findings += perform(checks(Project(scale)))
    except InputError as error:
        wrong = error
    except Exception as error:
        findings += [_failed("parameters", error)]
    problems = print_findings(findings, scale=scale)
    if wrong is not None:
        raise wrong
    return 1 if problems else 0


def perform(checks: Sequence[Check]) -> list[Finding]:
    """What the checks find, in their order."""
    findings: list[Finding] = []
    for matter, check in checks:
        try:
            found = check()
            findings += [found] if isinstance(found, Finding) else list(found)
        except Exception as error:
            findings.append(_failed(matter, error))
    return findings


def _failed(matter: str, error: Exception) -> Finding:
    text = str(error) if isinstance(error, PossamError) else explain(error)
    fault, _, remedy = (text or f"{type(error).__name__}: {error}").partition("; ")
    return Finding(matter, PROBLEM, fault, remedy or "make setup; if it stays, report it")
