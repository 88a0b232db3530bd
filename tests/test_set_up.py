"""`make` at a site: settings of pip reach uv, other Pythons' packages do not reach `make`."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

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


def command(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{text}\n")
    (folder / name).chmod(0o755)


def interpreter(folder: Path, name: str, version: str, *, with_venv: bool = True) -> None:
    """Stands in for a Python: knows its version, and whether it can make environments."""
    found = f'case "$*" in *version_info*) echo {version};; *ensurepip*) {str(with_venv).lower()};;'
    command(folder, name, f"{found} *) exit 1;; esac")


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A folder of commands without any Python, uv or network."""
    for name in ("bash", "sed", "touch", "env", "which"):
        found = next(p for p in ("/bin", "/usr/bin") if (Path(p) / name).exists())
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(Path(found) / name)
    return tmp_path / "bin"


def choice(commands: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", str(REPOSITORY / "workflow/python.sh"), str(folder), "1.0"],
        env={"PATH": str(commands), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_newest_supported_python_is_taken(tmp_path: Path, commands: Path) -> None:
    interpreter(commands, "python3", "3.11")
    interpreter(commands, "python3.12", "3.12")
    command(commands, "python3.13", "exit 127")  # pyenv's, of a version that is not selected
    interpreter(commands, "python3.14", "3.14")  # for which a package must be compiled: last
    interpreter(commands, "python3.15", "3.15")
    assert choice(commands, tmp_path).stdout == f"{commands}/python3.12\n"
    interpreter(commands, "python3.13", "3.13")
    assert choice(commands, tmp_path).stdout == f"{commands}/python3.13\n"
    assert choice(commands, tmp_path, PYTHON="python3").stdout == f"{commands}/python3\n"
    for name in ("python3", "python3.12", "python3.13"):
        (commands / name).unlink()
    assert choice(commands, tmp_path).stdout == f"{commands}/python3.14\n"


def test_a_named_python_that_does_not_fit_is_refused(tmp_path: Path, commands: Path) -> None:
    interpreter(commands, "python3.13", "3.13")
    interpreter(commands, "python3.10", "3.10")
    for name, reason in (("python3.10", "is Python 3.10, not one of"), ("nothing", "no such")):
        done = choice(commands, tmp_path, PYTHON=name)
        assert done.returncode == 2 and done.stdout == "" and reason in done.stderr


def test_debian_s_python_without_its_package_is_told(tmp_path: Path, commands: Path) -> None:
    interpreter(commands, "python3", "3.13", with_venv=False)
    done = choice(commands, tmp_path)
    assert done.returncode == 2 and "apt install python3-venv" in done.stderr


def test_uv_makes_one_where_none_fits(tmp_path: Path, commands: Path) -> None:
    interpreter(commands, "python3", "3.9")
    made, stand_in = tmp_path / "made", tmp_path / "elsewhere"
    interpreter(stand_in, "python3", "3.13")
    folder = "$5/cpython-3.13.1-linux/bin"
    text = (
        f'echo "$*" >"{tmp_path}/asked"; mkdir -p "{folder}"; ln -s "{stand_in}/python3" "{folder}"'
    )
    command(commands, "uv", text)
    for name in ("mkdir", "ln"):
        (commands / name).symlink_to(f"/bin/{name}")
    done = choice(commands, made)
    assert done.stdout == f"{made}/cpython-3.13.1-linux/bin/python3\n"
    assert (tmp_path / "asked").read_text() == f"python install --quiet --install-dir {made} 3.13\n"
    (commands / "uv").unlink()
    assert choice(commands, made).stdout == done.stdout  # the one that was made is found again


def test_without_uv_or_without_a_network_the_remedies_are_named(
    tmp_path: Path, commands: Path
) -> None:
    done = choice(commands, tmp_path / "made")
    assert done.returncode == 2 and "uv is not here either" in done.stderr
    command(commands, "uv", "exit 2")
    done = choice(commands, tmp_path / "made")
    assert done.returncode == 2 and "uv python install 3.13" in done.stderr


def test_the_supported_versions_are_typed_once_more_only() -> None:
    """python.sh must work before there is a Python, so it cannot read pyproject.toml."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    script = (REPOSITORY / "workflow/python.sh").read_text()
    versions = re.search(r'^supported="([0-9. ]+)"', script, re.MULTILINE)
    assert versions is not None
    for version in ("3.10", "3.11", "3.12", "3.13", "3.14", "3.15"):
        fits = SpecifierSet(project["requires-python"]).contains(version)
        assert fits == (version in versions[1].split())
        assert fits == (f"Programming Language :: Python :: {version}" in project["classifiers"])


def test_make_ends_without_a_python_that_fits(tmp_path: Path, commands: Path) -> None:
    text = (REPOSITORY / "Makefile").read_text()
    text = text.replace("SHELL := /bin/bash", f"SHELL := {commands}/bash")
    (tmp_path / "Makefile").write_text(text)
    (tmp_path / "workflow").symlink_to(REPOSITORY / "workflow")
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
    assert "uv python install 3.13" in done.stderr and not (tmp_path / ".venv").exists()
