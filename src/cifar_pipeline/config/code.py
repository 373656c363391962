"""Which files of ours a script uses: its imports, followed."""

import ast
from collections.abc import Iterable
from pathlib import Path

PACKAGE = "cifar_pipeline"


def imported_files(entries: Iterable[Path], source: Path) -> set[Path]:
    """`entries` and every file of the package under `source` that they import, directly or not.

    A file of C++ beside one of Python and of its name is a part of it.
    """
    found: set[Path] = set()
    waiting = list(entries)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            packages = [folder / "__init__.py" for folder in path.parents if source in folder.parents]
            waiting += [package for package in packages if package.is_file()]
            waiting += [file for name in _imports(path) for file in _files(name, source)]
    return found | {path.with_suffix(".cpp") for path in found if path.with_suffix(".cpp").is_file()}


def module_file(name: str, source: Path) -> Path | None:
    """The file of the dotted module `name` under `source`, if it is one of ours."""
    if name.split(".")[0] != PACKAGE:
        return None
    path = source.joinpath(*name.split("."))
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _imports(path: Path) -> Iterable[str]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(name: str, source: Path) -> Iterable[Path]:
    """The file of the module, or of the module that defines the name, and those of the packages around it."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        file = module_file(".".join(parts[:end]), source)
        if file is not None:
            yield file
