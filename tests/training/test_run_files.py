"""A run whose identity changes keeps its work: set aside, taken back, or accepted."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from possam.runtime.errors import InputError
from possam.runtime.files import hash_json
from possam.training import run_files
from possam.training.run_files import PARTS, RunFiles, differences

OLD = {
    **{"run": "a", "device": "cpu", "code": "1" * 64},
    "parameters": {"loss": {"dice": 5.0}, "steps": 6},
}
NEW = {**OLD, "code": "2" * 64}


GIT = {"commit": "c" * 40, "dirty": False, "note": ""}


@pytest.fixture(autouse=True)
def git(monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of calling git hundreds of times."""
    monkeypatch.setattr(run_files, "source_state", lambda: GIT)


class Killed(BaseException):
    pass


@contextmanager
def killed_at_rename(number: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if the process was killed before its ``number``-th rename."""
    count, replace = 0, os.replace

    def killing(*arguments: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Killed
        replace(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killing)
        with suppress(Killed):
            yield


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return RunFiles(tmp_path / "runs/a/seed0", superseded=tmp_path / "superseded/a/seed0")


def work(files: RunFiles, identity: Mapping[str, Any], mark: str) -> None:
    """A finished run whose every file says ``mark``."""
    files.prepare(identity)
    for part in PARTS:
        path = files.directory / part
        if part == "checkpoints":
            path = path / "step_000000004" / "state.pt"
            path.parent.mkdir(parents=True)
        path.write_text(mark)


def content(folder: Path) -> dict[str, str]:
    """Path -> text, without identities."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "identity.json"
    }


def whole(mark: str) -> dict[str, str]:
    names = {part: part for part in PARTS} | {"checkpoints": "checkpoints/step_000000004/state.pt"}
    return dict.fromkeys(sorted(names.values()), mark)


def test_the_work_of_another_identity_is_set_aside_and_comes_back(
    files: RunFiles, capsys: pytest.CaptureFixture[str]
) -> None:
    work(files, OLD, "old")
    files.prepare(NEW)
    aside = files.superseded / hash_json(OLD)[:12]
    assert content(files.directory) == {} and content(aside) == whole("old")
    printed = capsys.readouterr().out
    assert f"possam runs remove {aside}\n" not in printed and f"runs remove {aside}." in printed
    assert files.held()["hash"] == hash_json(NEW) and not files.has_work

    work(files, NEW, "new")
    files.prepare(OLD)
    assert content(files.directory) == whole("old")
    assert files.held()["hash"] == hash_json(OLD)
    assert [content(other.directory) for other in files.others()] == [whole("new")]
    assert "taken back" in capsys.readouterr().out
    assert not aside.exists()


def test_what_has_no_finished_steps_is_not_kept(files: RunFiles) -> None:
    files.prepare(OLD)
    files.metrics.write_text("{}\n")
    (files.directory / "slurm").mkdir()
    files.prepare(NEW)
    assert not files.metrics.exists() and not files.superseded.exists()
    assert (files.directory / "slurm").is_dir(), "belongs to the job, not to the identity"


def test_work_without_an_identity_is_kept_too(files: RunFiles) -> None:
    work(files, OLD, "old")
    files.identity.unlink()
    files.prepare(NEW)
    (other,) = files.others()
    assert content(other.directory) == whole("old") and other.directory.name.startswith("unknown")


@pytest.mark.parametrize("then", [OLD, NEW], ids=["back to the old code", "on with the new code"])
def test_a_kill_between_two_renames_loses_nothing(
    files: RunFiles, then: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old and new runs with work: the new one is set aside while the old one is taken back."""
    number = 0
    while True:
        number += 1
        work(files, OLD, "old")
        work(files, NEW, "new")
        with killed_at_rename(number, monkeypatch):
            files.prepare(OLD)
            break
        files.prepare(then)
        here, (other,) = content(files.directory), files.others()
        expected = ["old", "new"] if then is OLD else ["new", "old"]
        assert [here, content(other.directory)] == [whole(mark) for mark in expected]
        assert files.held()["hash"] == hash_json(then)
        for folder in (files.directory, files.superseded):
            os.rename(folder, folder.with_name(f"done_{number}"))
    assert number > 2 * len(PARTS), "every rename of both moves"


@pytest.mark.parametrize("then", [OLD, NEW], ids=["back to the old code", "on with the new code"])
def test_a_kill_while_a_run_is_set_aside_for_a_fresh_start(
    files: RunFiles, then: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(1, len(PARTS) + 2):
        work(files, OLD, "old")
        with killed_at_rename(number, monkeypatch):
            files.prepare(NEW)
        files.prepare(then)
        kept = [content(other.directory) for other in files.others()]
        if then is OLD:
            assert content(files.directory) == whole("old") and not kept
        else:
            assert content(files.directory) == {} and kept == [whole("old")]
        for folder in (files.directory, files.superseded):
            if folder.exists():
                os.rename(folder, folder.with_name(f"done_{number}"))


def test_the_same_identity_twice_has_two_places(files: RunFiles) -> None:
    """As after ``dvc checkout`` has brought back a run that was set aside, too."""
    work(files, OLD, "old")
    aside = files.set_aside()
    assert aside is not None
    shutil.copytree(aside, files.directory, dirs_exist_ok=True)
    files.prepare(NEW)
    names = [other.directory.name for other in files.others()]
    assert names == [hash_json(OLD)[:12], f"{hash_json(OLD)[:12]}-2"]


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"parameters": {"loss": {"dice": 4.0}, "steps": 6}}, "parameters.loss.dice: 5.0 -> 4.0"),
        ({"device": "cuda"}, "device: cpu -> cuda"),
        ({"start": "x"}, "start: None -> x"),
    ],
)
def test_only_a_change_of_the_code_can_be_accepted(
    files: RunFiles, changed: dict[str, Any], named: str
) -> None:
    work(files, OLD, "old")
    before = files.identity.read_text()
    with pytest.raises(InputError, match=named):
        files.take_up({**NEW, **changed}, accept_code=True)
    assert content(files.directory) == whole("old") and files.identity.read_text() == before


def test_without_work_there_is_nothing_to_accept(files: RunFiles) -> None:
    work(files, OLD, "old")
    files.prepare(NEW)
    with pytest.raises(InputError, match=r"--accept-code: no checkpoint.*possam runs restore"):
        files.take_up(NEW, accept_code=True)


def test_acceptances_are_a_list(files: RunFiles) -> None:
    work(files, OLD, "old")
    files.summary.write_text(json.dumps({"steps": 6}))
    for identity in (NEW, {**NEW, "code": "3" * 64}):
        files.take_up(identity, accept_code=True)
    hashes = [hash_json({**OLD, "code": digit * 64}) for digit in "123"]
    changes = files.accepted
    assert [change["before"]["identity"] for change in changes] == hashes[:2]
    assert [change["after"]["identity"] for change in changes] == hashes[1:]
    assert [change["before"]["code"][0] for change in changes] == ["1", "2"]
    assert all(change["steps"] == 6 and change["after"]["git"] == GIT for change in changes)
    assert files.held()["hash"] == hashes[2] and files.identities == set(hashes)
    before = files.identity.read_text()
    files.take_up({**NEW, "code": "3" * 64}, accept_code=True)
    assert files.identity.read_text() == before, "accepted already"


def test_a_finished_run_keeps_the_device_that_computed_it(files: RunFiles) -> None:
    def on(device: str) -> dict[str, str]:
        return {"run": "a", "device": device, "code": device}

    work(files, on("cuda"), "old")
    assert files.device_of(on, "cpu") == "cuda"
    files.summary.unlink()
    assert files.device_of(on, "cpu") == "cpu", "steps would be computed here"
    files.summary.write_text("{}")

    def edited(device: str) -> dict[str, str]:
        return on(device) | {"code": f"edited {device}"}

    assert files.device_of(edited, "cpu") == "cpu"
    assert files.device_of(edited, "cpu", accept_code=True) == "cuda"
    files.prepare(edited("cpu"))
    assert files.device_of(on, "cpu") == "cuda", "it can be taken back"


def test_differences_are_grouped_by_the_key_at_the_top() -> None:
    after = {**OLD, "parameters": {"loss": {"dice": 4.0, "new": 1}, "steps": 7}}
    assert differences(OLD, OLD) == {}
    assert differences(OLD, after) == {
        "parameters": "parameters.loss.dice: 5.0 -> 4.0, parameters.loss.new: None -> 1, "
        "parameters.steps: 6 -> 7"
    }
