"""`make` at a site: settings of pip reach uv, other Pythons' packages do not reach `make`."""

import os
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PYTHON = """#!/bin/bash
# Stands in for `python -m pip config get KEY`, with the pip.conf beside it.
line=$(grep "^$5=" "${0%/*}/pip.conf") || { echo "ERROR: No such key - $5" >&2; exit 1; }
printf '%b\\n' "${line#*=}"
"""
UV = """#!/bin/bash
echo "arguments: $*"
env | grep -E '^(UV_|SSL_CERT_FILE|HTTPS_PROXY)'
"""


def variables(tmp_path: Path, conf: str, **environment: str) -> dict[str, str]:
    """What uv finds in its environment, and its `arguments`."""
    for name, text in (("python", PYTHON), ("uv", UV), ("pip.conf", conf)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        [str(REPOSITORY / "workflow/uv.sh"), str(tmp_path), "pip", "install", "x"],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
    lines = done.stdout.replace(": ", "=", 1).splitlines()
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_pip_conf_reaches_uv(tmp_path: Path) -> None:
    conf = (
        "global.index-url=https://u:p@mirror/simple",
        r"global.extra-index-url=\nhttps://one/simple\nhttps://two/simple",
        "install.find-links=/wheels /more",
        "global.cert=/site.pem",
        "global.trusted-host=mirror",
        "global.proxy=http://proxy:3128",
    )
    assert variables(tmp_path, "\n".join(conf)) == {
        "arguments": "pip install x",
        "UV_DEFAULT_INDEX": "https://u:p@mirror/simple",
        "UV_INDEX": "https://one/simple https://two/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,/more",
        "UV_INSECURE_HOST": "mirror",
        "SSL_CERT_FILE": "/site.pem",
        "HTTPS_PROXY": "http://proxy:3128",
    }


def test_variables_of_pip_win_over_pip_conf_and_those_of_uv_over_both(tmp_path: Path) -> None:
    conf = "global.index-url=https://conf/simple\n"
    found = variables(tmp_path, conf, PIP_INDEX_URL="https://pip/simple", PIP_CERT="/pip.pem")
    assert found["UV_DEFAULT_INDEX"] == "https://pip/simple"
    assert found["SSL_CERT_FILE"] == "/pip.pem"
    found = variables(
        tmp_path, conf, PIP_INDEX_URL="https://pip/simple", UV_DEFAULT_INDEX="https://uv/simple"
    )
    assert found["UV_DEFAULT_INDEX"] == "https://uv/simple"


def test_without_settings_uv_gets_none(tmp_path: Path) -> None:
    assert variables(tmp_path, "", UV_INDEX="") == {"arguments": "pip install x", "UV_INDEX": ""}


def recipe(tmp_path: Path, **environment: str) -> str:
    """What a recipe of the Makefile finds in its environment."""
    text = (REPOSITORY / "Makefile").read_text()
    (tmp_path / "Makefile").write_text(f"{text}\nprint-environment:\n\t@env\n")
    (tmp_path / "requirements.lock").touch()
    return subprocess.run(
        ["make", "-s", "print-environment"],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_make_does_not_hear_another_python_s_packages(tmp_path: Path) -> None:
    found = recipe(tmp_path, PYTHONPATH="/module/site-packages", PYTHONHOME="/module").splitlines()
    assert f"PYTHONPATH={tmp_path}" in found
    assert not [line for line in found if "/module" in line]


def test_make_finds_a_place_for_caches_and_a_name(tmp_path: Path) -> None:
    found = recipe(tmp_path, HOME="/nowhere").splitlines()
    assert f"HOME={tmp_path}/.possam/home" in found
    assert f"XDG_CACHE_HOME={tmp_path}/.possam/home/.cache" in found
    assert any(line.startswith("LOGNAME=") and line != "LOGNAME=" for line in found)
    found = recipe(tmp_path, HOME=str(tmp_path), USER="user").splitlines()
    assert f"HOME={tmp_path}" in found and "XDG_CACHE_HOME" not in "".join(found)


def test_make_passes_indexes_on_as_they_are(tmp_path: Path) -> None:
    found = recipe(tmp_path, PIP_INDEX_URL="https://u:a$b@mirror/simple", SSL_CERT_FILE="/c.pem")
    lines = found.splitlines()
    assert "UV_DEFAULT_INDEX=https://u:a$b@mirror/simple" in lines
    assert "UV_SYSTEM_CERTS=true" in lines and "PIP_CERT=/c.pem" in lines


@pytest.mark.parametrize("only", ["python3.13", None])
def test_a_machine_without_a_python_that_fits(tmp_path: Path, only: str | None) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("bash", "sed", "touch", "env"):
        found = next(p for p in ("/bin", "/usr/bin") if (Path(p) / name).exists())
        (commands / name).symlink_to(Path(found) / name)
    if only is not None:
        (commands / "python3").write_text("#!/bin/bash\nexit 1\n")
        (commands / "python3").chmod(0o755)
    text = (
        (REPOSITORY / "Makefile")
        .read_text()
        .replace("SHELL := /bin/bash", f"SHELL := {commands}/bash")
    )
    (tmp_path / "Makefile").write_text(text)
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).touch()
    done = subprocess.run(
        ["make", "setup"],
        cwd=tmp_path,
        env={"PATH": f"{commands}"},
        executable=next(p for p in ("/usr/bin/make", "/bin/make") if Path(p).exists()),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "uv python install 3.12" in done.stderr and not (tmp_path / ".venv").exists()
