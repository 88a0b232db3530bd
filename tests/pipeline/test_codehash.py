"""The code hash follows what the code does, not how it is written down."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from possam.pipeline import codehash
from possam.pipeline.codehash import code_hash, module_closure
from possam.runtime.errors import InputError

FILES = {
    "__init__.py": '"""Package."""\n__version__ = "1.0"\n',
    "loop.py": '"""Loop."""\nfrom demo.losses import dice\n\n\ndef run(x):\n    """Run."""\n'
    "    from demo import lazy\n    return dice(x) + lazy.K\n",
    "losses.py": "from demo.deep import scale\n\n\ndef dice(x):\n"
    "    # reason\n    return scale(x) * 2\n",
    "lazy.py": "K = 3\n",
    "deep/__init__.py": "from .inner import scale\n",
    "deep/inner.py": "def scale(x, unit=None):\n    return x\n",
    "other.py": "VALUE = 1\n",
    "progress.py": "from demo import other\n",
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "demo"


def edit(package: Path, name: str, old: str, new: str) -> None:
    path = package / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_closure_follows_imports_in_functions_relative_imports_and_packages(package: Path) -> None:
    expected = ["demo", "demo.deep", "demo.deep.inner", "demo.lazy", "demo.loop", "demo.losses"]
    assert list(module_closure("demo.loop", package=package)) == expected
    assert list(module_closure("demo.other", package=package)) == ["demo", "demo.other"]


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("loop.py", '"""Run."""', '"""Another text."""'),
        ("loop.py", '    """Run."""\n', ""),
        ("loop.py", '"""Loop."""', "# no docstring\n"),
        ("losses.py", "# reason", "# a better reason"),
        ("losses.py", "scale(x) * 2", "(\n        scale( x )*2\n    )"),
        ("deep/inner.py", "    return x", "    'a note'\n\n    return x"),
        ("__init__.py", "1.0", "2.0"),
        ("other.py", "1", "2"),
    ],
)
def test_unchanged_by_text_that_does_nothing(package: Path, name: str, old: str, new: str) -> None:
    before = code_hash("demo.loop", package=package)
    edit(package, name, old, new)
    assert code_hash("demo.loop", package=package) == before


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("losses.py", "* 2", "* 2.0"),
        ("losses.py", "* 2", "+ 2"),
        ("lazy.py", "3", "4"),
        ("deep/inner.py", "return x", "return -x"),
        ("deep/inner.py", "unit=None", "unit=1"),
        ("deep/inner.py", "unit=None", "*, unit=None"),
        ("deep/__init__.py", "from .inner", "from ..other import VALUE\nfrom .inner"),
        ("loop.py", "lazy.K", "lazy.k"),
        ("loop.py", "def run(x)", "def run(x: int)"),
    ],
)
def test_changed_by_code_anywhere_in_the_closure(
    package: Path, name: str, old: str, new: str
) -> None:
    before = code_hash("demo.loop", package=package)
    edit(package, name, old, new)
    assert code_hash("demo.loop", package=package) != before


FORMATTED = ast.FormattedValue(ast.Name("x"), conversion=-1)
ERRORS = "def check(x, names):\n    if x < 0:\n        raise InputError({})\n    return x\n"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('"too small"', '"must not be negative"'),
        ('"too small"', 'f"too small: " "choose another"'),
        ('f"{x} is too small"', 'f"x: {x:.3f} is below 0; " "choose another"'),
        ('"x: " + str(x)', '"the value " + str(x)'),
        ('message="too small"', 'message="negative"'),
    ],
)
def test_unchanged_by_the_wording_of_an_error(package: Path, before: str, after: str) -> None:
    path = package / "lazy.py"
    path.write_text(FILES["lazy.py"] + ERRORS.format(before))
    first = code_hash("demo.loop", package=package)
    path.write_text(FILES["lazy.py"] + ERRORS.format(after))
    assert code_hash("demo.loop", package=package) == first


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ('f"{x}"', 'f"{names.pop()}"'),
        ('f"{names}"', 'f"{names[0]}"'),
        ("f\"{f('a')}\"", "f\"{f('b')}\""),
        ('"too small", code=1', '"too small", code=2'),
    ],
)
def test_changed_by_the_values_in_an_error(package: Path, before: str, after: str) -> None:
    path = package / "lazy.py"
    path.write_text(FILES["lazy.py"] + ERRORS.format(before))
    first = code_hash("demo.loop", package=package)
    path.write_text(FILES["lazy.py"] + ERRORS.format(after))
    assert code_hash("demo.loop", package=package) != first


@pytest.mark.parametrize("statement", ["raise Found({})", "raise InputError from g({})", "f({})"])
def test_other_texts_count(package: Path, statement: str) -> None:
    hashes = set()
    for text in ("'a'", "'b'"):
        (package / "lazy.py").write_text(f"K = 3\ndef g():\n    {statement.format(text)}\n")
        hashes.add(code_hash("demo.loop", package=package))
    assert len(hashes) == 2


@pytest.mark.parametrize(("device", "other"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_code_for_the_other_device_does_not_count(
    package: Path, device: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codehash, "DEVICE_CODE", {"demo.lazy": other, "demo.losses": device})

    def hashes() -> tuple[str, str, str]:
        return tuple(
            code_hash("demo.loop", package=package, device=d) for d in (device, other, None)
        )

    before = hashes()
    assert len(set(before)) == 3
    edit(package, "lazy.py", "3", "4")
    after = hashes()
    assert after[0] == before[0] and after[1] != before[1] and after[2] != before[2]


def test_code_for_one_device_is_reached_by_trainings_on_it() -> None:
    found = {d: set(module_closure("possam.stages.train", device=d)) for d in ("cpu", "cuda")}
    for module, device in codehash.DEVICE_CODE.items():
        assert [d for d, closure in found.items() if module in closure] == [device]
    only_for_these = {"possam.runtime.compiled_loops"}
    assert found["cpu"] ^ found["cuda"] == codehash.DEVICE_CODE.keys() | only_for_these


def test_excluded_modules_neither_count_nor_lead_on(package: Path) -> None:
    edit(package, "loop.py", "from demo.losses", "import demo.progress\nfrom demo.losses")
    excluded = frozenset({"demo.progress"})
    closure = module_closure("demo.loop", package=package, excluded=excluded)
    assert not {"demo.progress", "demo.other"} & set(closure)
    assert {"demo.progress", "demo.other"} <= set(module_closure("demo.loop", package=package))


def test_dynamic_imports_of_constant_names_count(package: Path) -> None:
    edit(package, "lazy.py", "K = 3", 'import importlib\nK = importlib.import_module("demo.other")')
    assert "demo.other" in module_closure("demo.loop", package=package)


def test_order_of_the_given_modules_does_not_matter(package: Path) -> None:
    assert code_hash("demo.lazy", "demo.other", package=package) == code_hash(
        "demo.other", "demo.lazy", "demo.other", package=package
    )


def test_unknown_module_and_broken_file_are_named(package: Path) -> None:
    with pytest.raises(InputError, match=r"demo\.nothing"):
        code_hash("demo.nothing", package=package)
    (package / "lazy.py").write_text("def broken(:\n")
    with pytest.raises(InputError, match=r"lazy\.py"):
        code_hash("demo.loop", package=package)


def test_hash_does_not_depend_on_the_python_version(package: Path) -> None:
    """Pinned: a hash that moved with the interpreter would retrain every run after an upgrade."""
    assert code_hash("demo.loop", package=package) == PINNED


@pytest.mark.parametrize(
    ("parts", "one"),
    [
        *[(["a", "b", FORMATTED], ["ab", FORMATTED]), ([FORMATTED, ""], [FORMATTED])],
        *[(["", FORMATTED, "", "c"], [FORMATTED, "c"]), ([["a", "b"], "c"], ["abc"])],
    ],
)
def test_texts_that_some_versions_split_are_one(parts: list[Any], one: list[Any]) -> None:
    """3.12 splits texts of f-strings; the trees are written by hand, for every version."""

    def hashed(parts: list[Any]) -> str:
        found: list[str] = []
        codehash._normalise(_f_string(parts), found, [])
        return "".join(found)

    assert hashed(parts) == hashed(one)
    assert hashed(parts) != hashed([*one, "more"])


def _f_string(parts: list[Any]) -> ast.JoinedStr:
    made = (_f_string(p) if isinstance(p, list) else p for p in parts)
    return ast.JoinedStr([ast.Constant(p) if isinstance(p, str) else p for p in made])


def test_fields_of_later_versions_do_not_count_while_they_are_empty() -> None:
    found: dict[object, str] = {}
    for lazy in (None, 0, 1):
        node = ast.parse("import os").body[0]
        if lazy is not None:
            node._fields = (*node._fields, "is_lazy")
            node.is_lazy = lazy  # type: ignore[attr-defined]
        parts: list[str] = []
        codehash._normalise(node, parts, [])
        found[lazy] = "".join(parts)
    assert found[None] == found[0] != found[1]


def test_what_counts_is_written_without_the_versions_table_of_characters(package: Path) -> None:
    """``repr`` writes a character as it is from the version on that knows it."""
    (package / "lazy.py").write_text("K = '\u0cf3\U0001fadf é'\n", encoding="utf-8")
    parts: list[str] = []
    codehash._normalise(ast.parse((package / "lazy.py").read_bytes()), parts, [])
    assert "".join(parts).isascii() and r"\u0cf3\U0001fadf" in "".join(parts)


@pytest.mark.parametrize("content", [b"\r\n", b"\r"])
def test_line_ends_do_not_count(package: Path, content: bytes) -> None:
    (package / "lazy.py").write_text('K = """two\nlines"""\n\nif K:\n    L = 1 + \\\n        2\n')
    before = code_hash("demo.loop", package=package)
    for path in package.rglob("*.py"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", content))
    assert code_hash("demo.loop", package=package) == before


def test_a_file_system_that_ignores_case_adds_no_module(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(package, "loop.py", "from demo.losses", "from demo import Losses, Deep\nfrom demo.losses")
    before = module_closure("demo.loop", package=package)
    exact = Path.is_file

    def any_case(path: Path) -> bool:
        return exact(path) or exact(package / str(path.relative_to(package)).lower())

    monkeypatch.setattr(Path, "is_file", any_case)
    assert (package / "Losses.py").is_file() and (package / "Deep/__init__.py").is_file()
    assert module_closure("demo.loop", package=package) == before


def test_of_this_package_without_importing_it() -> None:
    assert (codehash.PACKAGE / "cli.py").is_file()
    probe = (
        "import sys\nfrom possam.pipeline.codehash import module_closure\n"
        "print(module_closure('possam.pictures.photographs'))\n"
        "loaded = {'possam.pictures.photographs', 'possam.params.project', 'torch'}\n"
        "assert not loaded & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert "possam.datasets.pixels" in done.stdout
    assert "possam.runtime.progress" not in done.stdout


def test_excluded_modules_exist_or_are_presentation() -> None:
    assert all(f"{name}.".startswith("possam.") for name in codehash.EXCLUDED)
    assert not {"possam.runtime.files", "possam.training.losses"} & codehash.EXCLUDED


PINNED = "d2fc4f08034a7687d56d1e14309f85d482f14ca0718d702c77776d80fa0fb27a"
