"""Hash of the code that a stage uses: one part of a result's identity.

The files are parsed, never imported. Comments, formatting, line ends, docstrings, the wording of
errors, the Python version and the file system do not change the hash; a changed constant or
statement does, also in an imported module. The standard library is enough to compute it.
"""

import ast
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeGuard

from possam.runtime.errors import InputError

PACKAGE = Path(__file__).resolve().parents[1]

EXCLUDED: frozenset[str] = frozenset({"possam"}) | frozenset(
    f"possam.{name}"
    for name in (
        *("cli", "datasets.catalogue", "pipeline.codehash", "reporting.tracking"),
        *("datasets.options", "evaluation.options", "model.options", "model.registry"),
        *("runtime.options", "synthetic.options", "training.options"),
        *("params.assets", "params.benchmarks", "params.data", "params.figures"),
        *("params.layout", "params.project", "params.reading", "params.scale"),
        *("params.tables", "params.yaml", "runtime.environment", "runtime.errors", "runtime.locks"),
        *("runtime.caches", "runtime.faults", "runtime.gpu_driver", "runtime.memory"),
        *("runtime.progress", "runtime.provenance", "runtime.reading", "runtime.secrets"),
        "runtime.version",
        "training.run_files",
    )
)
"""Modules that check, present or record work and cannot change a result: not counted, not followed.

The resolved parameters are in the identity themselves. The package's own module only offers the
library to its users.
"""

DEVICE_CODE: Mapping[str, str] = {
    "possam.model.ops.compiled_sampling": "cpu",
    "possam.model.ops.sampling_kernels": "cpu",
    "possam.model.ops.triton_sampling": "cuda",
}
"""Modules whose functions are called on one kind of device only -> that kind.

A module that passes work on to PyTorch on the other kind (``fast_linear``) is called there, too,
and so it is not listed.
"""

_VERSION_NAMES = {"__version__", "__all__"}
_COUNTED_ZEROS = {"conversion", "is_async", "level", "simple", "value"}
"""Fields of Python 3.11's nodes that count also where they are 0, False or empty."""


def module_closure(
    *modules: str,
    package: Path = PACKAGE,
    excluded: frozenset[str] = EXCLUDED,
    device: str | None = None,
) -> dict[str, str]:
    """The given modules and all modules of the package that they import, directly or not.

    Args:
        modules: dotted names, such as ``"possam.training.loop"``.
        package: the package's folder; its name is the first part of the dotted names.
        excluded: modules that do not count and whose own imports are not followed.
        device: ``cpu`` or ``cuda``: leave out the modules of the other one; None: all count.

    Returns:
        By dotted name, sorted, the SHA-256 of each module's code, parent packages included.

    Raises:
        InputError: a given module does not exist, or a file is not valid Python.
    """
    for module in modules:
        if _file_of(module, package) is None:
            raise InputError(f"code hash: there is no module {module!r} in {package}")
    if device is not None:
        excluded = excluded.union(name for name, own in DEVICE_CODE.items() if own != device)
    found: dict[str, str] = {}
    pending = [name for module in modules for name in _with_parents(module)]
    while pending:
        module = pending.pop()
        path = _file_of(module, package)
        if path is None or module in found or module in excluded:
            continue
        status = path.stat()
        found[module], targets = _analyse(path, module, status.st_mtime_ns, status.st_size)
        pending += [name for target in targets for name in _with_parents(target)]
    return dict(sorted(found.items()))


def code_hash(*modules: str, package: Path = PACKAGE, device: str | None = None) -> str:
    """SHA-256 (hex) of the code of :func:`module_closure`, arguments and errors as there."""
    closure = module_closure(*modules, package=package, device=device)
    text = "".join(f"{name}\0{content}\n" for name, content in closure.items())
    return hashlib.sha256(text.encode()).hexdigest()


def _with_parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _file_of(module: str, package: Path) -> Path | None:
    """The file of a dotted name, or None where the name is a function, class or foreign module."""
    first, *rest = module.split(".")
    if first != package.name:
        return None
    base = package.joinpath(*rest)
    for path in (base / "__init__.py", base.with_suffix(".py")):
        if path.is_file() and (rest or path.name == "__init__.py"):
            # Where a file system ignores case, the class Graph would be found as graph.py.
            listed = path.parent if path.stem == "__init__" else path
            return path if not rest or listed.name in os.listdir(listed.parent) else None
    return None


@lru_cache(maxsize=1024)
def _analyse(path: Path, module: str, modified: int, size: int) -> tuple[str, frozenset[str]]:
    """(Hash of the normalised code, names that it may import); cached until the file changes."""
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except (SyntaxError, ValueError) as error:
        raise InputError(f"{path}: not valid Python: {error}") from error
    parts: list[str] = []
    imports: list[ast.AST] = []
    _normalise(tree, parts, imports)
    is_package = path.name == "__init__.py"
    targets = frozenset(target for node in imports for target in _targets(node, module, is_package))
    return hashlib.sha256("".join(parts).encode("utf-8", "surrogatepass")).hexdigest(), targets


def _normalise(
    node: ast.AST, parts: list[str], imports: list[ast.AST], *, wording: bool = False
) -> None:
    """Append a canonical text of ``node`` to ``parts``, and its import nodes to ``imports``.

    Empty fields are left out: Python versions add fields (``type_params``), and an unused one must
    not change the hash. Values are written in ASCII: which characters ``repr`` escapes depends on
    the version's Unicode. ``wording``: the node is part of an error's message, whose literal text
    is left out, but not the values in it.
    """
    kind = node.__class__
    if isinstance(node, ast.JoinedStr):
        node = ast.JoinedStr(_joined(node.values))
    wording = wording and kind is not ast.Call  # what calls inside the message get does count
    if kind in (ast.Import, ast.ImportFrom, ast.Call):
        imports.append(node)
    parts += [kind.__name__, "("]
    for field in node._fields:
        value = getattr(node, field, None)
        if value is None or field in ("kind", "type_comment", "ctx"):
            continue  # a Constant node without a value is the constant None
        if isinstance(value, ast.AST):
            if wording and _is_text(value):
                continue
            parts.append(field)
            if kind is ast.Raise and _is_error(value):
                _normalise_error(value, parts, imports)
            else:
                _normalise(value, parts, imports, wording=wording)
        elif isinstance(value, list):
            if not value:
                continue
            parts += [field, "["]
            for item in value:
                if not isinstance(item, ast.AST):
                    parts.append(ascii(item))
                elif _is_inert(item) or (wording and _is_text(item)):
                    continue
                else:
                    _normalise(item, parts, imports, wording=wording)
                parts.append(",")
            parts.append("]")
        elif value or field in _COUNTED_ZEROS:
            parts.append(f"{field}={value!a};")
    parts.append(")")


def _joined(values: Iterable[ast.expr]) -> list[ast.expr]:
    """The parts of an f-string with adjacent texts as one and without empty ones.

    Some versions of Python split texts where a format specification or a literal ends.
    """
    result: list[ast.expr] = []
    for value in values:
        for part in _joined(value.values) if isinstance(value, ast.JoinedStr) else [value]:
            last = result[-1] if result else None
            if not (isinstance(part, ast.Constant) and isinstance(part.value, str)):
                result.append(part)
            elif isinstance(last, ast.Constant):
                result[-1] = ast.Constant(str(last.value) + part.value)
            elif part.value:
                result.append(part)
    return result


def _normalise_error(error: ast.Call, parts: list[str], imports: list[ast.AST]) -> None:
    """As :func:`_normalise`, of an error that is raised: without the text of its message."""
    parts.append("Call(")
    _normalise(error.func, parts, imports)
    for item in (*error.args, *error.keywords):
        if not _is_text(item):
            _normalise(item, parts, imports, wording=True)
            parts.append(",")
    parts.append(")")


def _is_text(node: ast.AST) -> bool:
    """Whether a node is a string, or an f-string without values."""
    if isinstance(node, ast.JoinedStr):
        return all(map(_is_text, node.values))
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _is_error(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether a node is a call of something named ``...Error``."""
    name = getattr(node, "func", None)
    return str(getattr(name, "attr", getattr(name, "id", ""))).endswith("Error")


def _is_inert(node: ast.AST) -> bool:
    """Statements without effect: bare strings (docstrings), ``pass``, version and export lists."""
    kind = node.__class__
    if kind is ast.Expr:
        value = node.value  # type: ignore[attr-defined]
        return isinstance(value, ast.Constant) and isinstance(value.value, str)
    if kind is ast.Assign:
        targets = node.targets  # type: ignore[attr-defined]
        return all(isinstance(t, ast.Name) and t.id in _VERSION_NAMES for t in targets)
    return kind is ast.Pass


def _targets(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Dotted names that an import statement or an ``import_module("...")`` call may load."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            anchor = module.split(".")
            drop = node.level - 1 if is_package else node.level
            anchor = anchor[: len(anchor) - drop]
            base = ".".join([*anchor, base] if base else anchor)
        yield base
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args:
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        argument = node.args[0]
        if name in ("import_module", "__import__") and isinstance(argument, ast.Constant):
            yield str(argument.value)
