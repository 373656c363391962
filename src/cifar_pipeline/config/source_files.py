"""Collect what a script's results depend on: source files, package versions and environment variables.

The source is read when the process starts. Import statements are parsed and followed without importing anything, so a
module that is imported by a computed name (`importlib.import_module`) is missed. Each file is hashed with SHA-256.
"""

import ast
import functools
import hashlib
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, packages_distributions, version
from pathlib import Path

PACKAGE = "cifar_pipeline"
# The package for users' own code.
PROJECT = "project"
# Packages that compute no result: composition, logging, tracking. Their imports are not followed.
NON_RESULT_PACKAGES = {"cli", "config", "sweeps", "tracking", "utils"}
# The folder src/ that this package was loaded from.
SOURCE = Path(__file__).resolve().parents[2]
# Suffixes of a package's files that are not hashed as data files.
NON_CODE_SUFFIXES = {".py", ".pyc", ".md"}


@dataclass(frozen=True)
class UsedFiles:
    """Source files and packages that a script uses.

    `paths` maps each file's name to its path, `hashes` to its SHA-256 when it was first read. `packages` are the import
    names of the installed packages that `_target_`s or files outside of this project's package use.
    """

    paths: dict[str, Path]
    hashes: dict[str, str]
    packages: frozenset[str]

    def changed(self) -> str | None:
        """Return the first file whose content has changed or that is gone."""
        for name, path in self.paths.items():
            if not path.is_file() or _hash(path.read_bytes()) != self.hashes[name]:
                return name
        return None


class SourceTree:
    """Source files of a folder, all read on construction, so that a later edit has no effect."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._contents: dict[Path, bytes] = {}
        self._hashes: dict[Path, str] = {}
        self._files: dict[str, Path | None] = {}
        self._names: dict[tuple[str, Path], list[str]] = {}
        for path in (*folder.glob("*.py"), *(folder / PACKAGE).rglob("*.py"), *(folder / PROJECT).rglob("*.py")):
            self._content(path)

    @functools.cached_property
    def _search(self) -> list[str]:
        return [str(self.folder), *sys.path]

    def used(self, script: str, targets: Iterable[str] = ()) -> UsedFiles:
        """Return the code of a script (`train`) and of `_target_`s (dotted names), with everything that it imports."""
        paths: dict[str, Path] = {}
        packages: set[str] = set()
        queue = [script]
        for target in targets:
            queue += list(_prefixes(target))
            packages |= {target.partition(".")[0]} & set(self._installed([target]))
        seen: set[str] = set()
        searched: set[tuple[Path, bool]] = set()
        while queue:
            name = queue.pop()
            if name in seen:
                continue
            seen.add(name)
            path = self._file(name)
            if path is None or self._package(path) in NON_RESULT_PACKAGES:
                continue
            paths[self._stable_name(name, path)] = path
            place = (path.parent, path.stem == "__init__")
            if place not in searched:  # a search of folders for each module would take most of the time
                searched.add(place)
                paths |= {self._stable_name(name, other): other for other in self._data_files(path)}
            imported = self._imports(name, path)
            queue += imported
            if self._package(path) is None and name != script:
                packages |= set(self._installed(imported))
        return UsedFiles(paths, {name: self._hash(path) for name, path in paths.items()}, frozenset(packages))

    def hashes(self) -> dict[str, str]:
        """Return the hash of every file that was read from the folder, by its relative path."""
        inside = (path for path in self._contents if path.is_relative_to(self.folder))
        return {path.relative_to(self.folder).as_posix(): self._hash(path) for path in sorted(inside)}

    def _content(self, path: Path) -> bytes:
        if path not in self._contents:
            self._contents[path] = path.read_bytes()
        return self._contents[path]

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = _hash(self._content(path) if path.suffix == ".py" else path.read_bytes())
        return self._hashes[path]

    def _package(self, path: Path) -> str | None:
        """Return the subpackage of this project's package that contains a file; None for any other file."""
        if not path.is_relative_to(self.folder / PACKAGE):
            return None
        return path.relative_to(self.folder / PACKAGE).parts[0].removesuffix(".py")

    def _stable_name(self, name: str, path: Path) -> str:
        """Return a file's name that does not depend on the location of the folder or of the installation."""
        if path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        return f"{name}: {path.name}"

    def _data_files(self, path: Path) -> Iterator[Path]:
        """Yield the other files in a module's package and below it, such as C++ sources and templates."""
        roots = [folder for folder in (self.folder / PACKAGE, self.folder / PROJECT) if path.is_relative_to(folder)]
        if not roots:
            return
        is_root = path == roots[0] / "__init__.py"
        for other in sorted(path.parent.glob("*") if is_root else path.parent.rglob("*")):
            hidden = any(name.startswith((".", "__pycache__")) for name in other.relative_to(path.parent).parts)
            if not hidden and other.suffix not in NON_CODE_SUFFIXES and other.is_file():
                yield other

    def _imports(self, name: str, path: Path) -> list[str]:
        """Return the dotted names that a module imports, with their parent packages; some name attributes of modules.

        Read once: a sweep asks for each of its trials.
        """
        if (name, path) not in self._names:
            package = (name if path.stem == "__init__" else name.rpartition(".")[0]).split(".")
            names: dict[str, None] = {}
            for imported, level in _imports(self._content(path)) if path.suffix == ".py" else ():
                start = package[: len(package) - level + 1] if level else []
                names |= dict.fromkeys(_prefixes(".".join(filter(None, [*start, imported]))))
            self._names[name, path] = list(names)
        return self._names[name, path]

    def _file(self, name: str) -> Path | None:
        """Return the file of a module of this project, or of any module on Python's path that is not installed."""
        if name not in self._files:
            self._files[name] = self._find(name)
        return self._files[name]

    def _find(self, name: str) -> Path | None:
        top = name.partition(".")[0]
        if not all(word.isidentifier() for word in name.split(".")):
            return None
        if top in (PACKAGE, PROJECT) or (self.folder / f"{top}.py") in self._contents:
            path = self.folder.joinpath(*name.split("."))
            candidates = (path.with_suffix(".py"), path / "__init__.py")
            return next((candidate for candidate in candidates if candidate in self._contents), None)
        spec = _spec(top, tuple(self._search))
        if spec is None or _is_installed(spec):
            return None
        for prefix in list(_prefixes(name))[1:]:
            # By its last name: for a package without `__init__.py` the finder looks up the parent, not imported yet.
            spec = PathFinder.find_spec(prefix.rpartition(".")[2], list(spec.submodule_search_locations or []))
            if spec is None:
                return None
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None

    def _installed(self, names: Iterable[str]) -> Iterator[str]:
        """Yield the top-level names of the installed modules that are not in the standard library."""
        for top in {name.partition(".")[0] for name in names}:
            if top not in (PACKAGE, PROJECT) and top not in sys.stdlib_module_names:
                spec = _spec(top, tuple(self._search))
                if spec is not None and _is_installed(spec):
                    yield top


@functools.cache
def loaded_sources() -> SourceTree:
    """Return the code of this process. The first call reads it, before the packages that compute are imported."""
    return SourceTree(SOURCE)


@functools.cache
def _spec(top: str, search: tuple[str, ...]) -> ModuleSpec | None:
    """Find a top-level module without importing it; None if it is in the standard library or missing."""
    if not top or top in sys.stdlib_module_names:
        return None
    try:
        # `find_spec` also finds editable installations.
        return PathFinder.find_spec(top, list(search)) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _is_installed(spec: ModuleSpec) -> bool:
    site_dirs = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    locations = [spec.origin, *(spec.submodule_search_locations or [])]
    paths = [Path(location) for location in locations if location and location != "namespace"]
    return any(
        {"site-packages", "dist-packages"} & set(path.parts) or any(path.is_relative_to(folder) for folder in site_dirs)
        for path in paths
    )


def _prefixes(name: str) -> Iterator[str]:
    """Yield `a`, `a.b` and `a.b.c` for `a.b.c`."""
    names = name.split(".")
    yield from (".".join(names[:end]) for end in range(1, len(names) + 1))


def _imports(content: bytes) -> Iterator[tuple[str, int]]:
    """Yield the dotted names in import statements, each with its number of leading dots."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return  # Python raises the error when the file is imported.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{node.module}." if node.module else ""
            yield from ((f"{module}{alias.name}", node.level) for alias in node.names)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# Packages that can change a stage's result, by their names on PyPI.
PACKAGES = {
    "preprocess": ("numpy", "pillow", "scikit-learn"),
    "train": (
        "lightning",
        "numpy",
        "onnx",
        "onnx-ir",
        "onnxscript",
        "pillow",
        "timm",
        "torch",
        "torchmetrics",
        "torchvision",
    ),
    "evaluate": (
        "captum",
        "matplotlib",
        "numpy",
        "onnxruntime",
        "pandas",
        "pillow",
        "timm",
        "torch",
        "torchmetrics",
        "torchvision",
    ),
}
# PyPI names of packages with another import name.
IMPORTED_AS = {"PIL": "pillow", "onnx_ir": "onnx-ir", "pillow_heif": "pillow-heif", "sklearn": "scikit-learn"}
# Import name of the optional package that reads HEIC images.
HEIC_PACKAGE = "pillow_heif"
# Environment variables that change numbers: precision, algorithms, instruction sets, compiler options.
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "BLIS_ARCH_TYPE", "CUBLAS*", "CUDNN_*", "DNNL_*", "KMP_DETERMINISTIC_REDUCTION", "MKL_CBWR*",
    "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC", "OMP_SCHEDULE", "ONEDNN_*", "OPENBLAS_CORETYPE", "PYTORCH_*",
    "TORCHINDUCTOR_*", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_*", "TORCH_CUDNN_*", "TORCH_LINALG_*",
    "TRITON_*",
)  # fmt: skip
# Matches of these patterns that concern only caches, memory, threads, paths and messages.
NON_NUMERIC_VARIABLES = (
    "CUBLAS_LOG*", "CUBLASLT_LOG*", "CUDNN_LOG*", "CUDNN_PATH", "*_CACHE", "*_CACHE_*", "*_DUMP*", "*_HOME", "*_PATH",
    "*_PROFILE*", "*_VERBOSE*", "PYTORCH_ALLOC_CONF", "PYTORCH_BUILD_*", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NVML_*", "PYTORCH_TEST_*", "PYTORCH_VERSION",
    "TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_WORKER_*", "TRITON_*_DIR", "TRITON_DEBUG",
)  # fmt: skip


def versions(stage: str, imported: Iterable[str] = ()) -> dict[str, str]:
    """Return the versions of the packages that can change a stage's result, and of other imported packages.

    Local version suffixes, such as `+cpu` of torch, are left out.
    """
    names = {*PACKAGES.get(stage, ()), *(name for top in imported for name in _distributions(top))}
    return {name: _version(name) for name in sorted(names)}


def variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment variables that change numbers, with their values."""
    environment = _initial_environment() if environment is None else environment
    return {name: value for name, value in sorted(environment.items()) if _changes_numbers(name)}


@functools.cache
def _initial_environment() -> dict[str, str]:
    """Return the environment at the first call, because libraries set variables later."""
    return {name: os.environ.get(name, "") for name in list(os.environ)}  # a copy: other threads change os.environ


def _changes_numbers(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in VARIABLES) and not any(
        fnmatchcase(name, pattern) for pattern in NON_NUMERIC_VARIABLES
    )


def _distributions(top: str) -> list[str]:
    """Return the PyPI names of the packages that contain a top-level module."""
    known = {*IMPORTED_AS.values(), *(name for names in PACKAGES.values() for name in names)}
    if (name := IMPORTED_AS.get(top, top)) in known:
        return [name]
    return [name.lower() for name in _all_distributions().get(top, [])]


@functools.cache
def _all_distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def _version(name: str) -> str:
    try:
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        return "not installed"
