"""A command that misses a package names the extra that has it."""

import pytest
import typer
from typer.testing import CliRunner

from possam.runtime.commands import application, command
from possam.runtime.extras import missing_extra


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        ("pandas", "train"),
        ("scipy.optimize", "train"),
        ("panopticapi.evaluation", "train"),
        ("snakemake_executor_plugin_slurm", "workflow"),
        ("mlflow", "workflow"),
        ("rasterio", "exports"),
    ],
)
def test_the_extra_of_a_module(module: str, extra: str) -> None:
    message = missing_extra(ModuleNotFoundError(f"No module named {module!r}", name=module))
    assert message is not None and f"pip install 'possam[{extra}]'" in message


def test_other_errors_are_no_missing_extra() -> None:
    assert missing_extra(ModuleNotFoundError("No module named 'torch'", name="torch")) is None
    assert missing_extra(ModuleNotFoundError("no name")) is None
    assert missing_extra(ImportError("cannot import name")) is None


def test_a_command_ends_with_code_2_and_the_remedy() -> None:
    app: typer.Typer = application("Test.")

    def first() -> None:
        raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")

    def second() -> None:
        """Two commands: typer asks for the name of none if there is one only."""

    command(app, "Tests", "x")(first)
    command(app, "Tests", "x")(second)
    done = CliRunner().invoke(app, ["first"])
    assert done.exit_code == 2
    assert "first: needs mlflow, which is not installed" in done.stderr
    assert "pip install 'possam[workflow]'" in done.stderr
