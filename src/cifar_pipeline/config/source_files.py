"""The code that a script uses, as it was when the process started: its imports followed, and a hash of each file.

Imports are read, not run: what code imports by a name that it makes up (`importlib.import_module`) is not followed.

What of the environment changes numbers: the versions of the packages that compute, and variables that they read.
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
# The package for the code of whoever uses this project.
PROJECT = "project"
# Packages that compute no result: they speak, compose, keep records. Their imports are not followed.
NON_RESULT_PACKAGES = {"cli", "config", "sweeps", "tracking", "utils"}
# The folder that the package was loaded from, in which the scripts are, too.
SOURCE = Path(__file__).resolve().parents[2]
# What lies in a package and is no part of its code.
NON_CODE_SUFFIXES = {".py", ".pyc", ".md"}


@dataclass(frozen=True)
class UsedFiles:
    """The code that a script uses.

    `paths` has each file by its name, `hashes` its SHA-256 as it was read first. `packages` are the installed packages
    that `_target_`s or files outside this project's package name, as they are imported.
    """

    paths: dict[str, Path]
    hashes: dict[str, str]
    packages: frozenset[str]

    def changed(self) -> str | None:
        """The first file that holds something else now, or is gone."""
        for name, path in self.paths.items():
            if not path.is_file() or _hash(path.read_bytes()) != self.hashes[name]:
                return name
        return None


class SourceTree:
    """The source files below a folder, all read at once: an edit that comes later changes nothing here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._contents: dict[Path, bytes] = {}
        self._hashes: dict[Path, str] = {}
        self._names: dict[Path, list[tuple[str, int]]] = {}
        for path in (*folder.glob("*.py"), *(folder / PACKAGE).rglob("*.py"), *(folder / PROJECT).rglob("*.py")):
            self._content(path)

    @functools.cached_property
    def _search(self) -> list[str]:
        return [str(self.folder), *sys.path]

    def used(self, script: str, targets: Iterable[str] = ()) -> UsedFiles:
        """The code of a script (`train`) and of the dotted names that `_target_`s give, and what that imports."""
        paths: dict[str, Path] = {}
        packages: set[str] = set()
        waiting = [script]
        for target in targets:
            waiting += list(_prefixes(target))
            packages |= {target.partition(".")[0]} & set(self._installed([target]))
        seen: set[str] = set()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            path = self._file(name)
            if path is None or self._package(path) in NON_RESULT_PACKAGES:
                continue
            paths[self._told(name, path)] = path
            paths |= {self._told(name, other): other for other in self._beside(path)}
            imported = list(self._imports(name, path))
            waiting += imported
            if self._package(path) is None and name != script:
                packages |= set(self._installed(imported))
        return UsedFiles(paths, {name: self._hash(path) for name, path in paths.items()}, frozenset(packages))

    def hashes(self) -> dict[str, str]:
        """The hash of every file that was read, by its path below the folder; those from elsewhere are left out."""
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
        """The package of this project's package that a file is in; None for a file of somebody else."""
        if not path.is_relative_to(self.folder / PACKAGE):
            return None
        return path.relative_to(self.folder / PACKAGE).parts[0].removesuffix(".py")

    def _told(self, name: str, path: Path) -> str:
        """A file's name that is the same wherever it lies: its path below the folder, or its module's name."""
        if path.is_relative_to(self.folder):
            return path.relative_to(self.folder).as_posix()
        return f"{name}: {path.name}"

    def _beside(self, path: Path) -> Iterator[Path]:
        """Files of another kind in a package of this project and below it, such as C++ and templates."""
        tops = [folder for folder in (self.folder / PACKAGE, self.folder / PROJECT) if path.is_relative_to(folder)]
        if not tops:
            return
        is_top = path == tops[0] / "__init__.py"
        for other in sorted(path.parent.glob("*") if is_top else path.parent.rglob("*")):
            hidden = any(part.startswith((".", "__pycache__")) for part in other.relative_to(path.parent).parts)
            if not hidden and other.suffix not in NON_CODE_SUFFIXES and other.is_file():
                yield other

    def _imports(self, name: str, path: Path) -> Iterator[str]:
        """The dotted names that a module imports, and the packages around each; a few of them are no modules."""
        if path not in self._names:
            self._names[path] = list(_imports(self._content(path))) if path.suffix == ".py" else []
        package = name if path.stem == "__init__" else name.rpartition(".")[0]
        for imported, level in self._names[path]:
            start = package.split(".")[: len(package.split(".")) - level + 1] if level else []
            yield from _prefixes(".".join(filter(None, [*start, imported])))

    def _file(self, name: str) -> Path | None:
        """The file of a module that is loose: of this project, or anywhere on Python's path but installed."""
        top = name.partition(".")[0]
        if not all(part.isidentifier() for part in name.split(".")):
            return None
        if top in (PACKAGE, PROJECT) or (self.folder / f"{top}.py") in self._contents:
            path = self.folder.joinpath(*name.split("."))
            candidates = (path.with_suffix(".py"), path / "__init__.py")
            return next((candidate for candidate in candidates if candidate in self._contents), None)
        spec = _spec(top, tuple(self._search))
        if spec is None or _is_installed(spec):
            return None
        for prefix in list(_prefixes(name))[1:]:
            spec = PathFinder.find_spec(prefix, list(spec.submodule_search_locations or []))
            if spec is None:
                return None
        return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None

    def _installed(self, names: Iterable[str]) -> Iterator[str]:
        """The first words of the names of modules that are installed and no part of Python."""
        for top in {name.partition(".")[0] for name in names}:
            if top not in (PACKAGE, PROJECT) and top not in sys.stdlib_module_names:
                spec = _spec(top, tuple(self._search))
                if spec is not None and _is_installed(spec):
                    yield top


@functools.cache
def loaded_sources() -> SourceTree:
    """The code of this process: read by the first call, which comes before anything that computes is imported."""
    return SourceTree(SOURCE)


@functools.cache
def _spec(top: str, search: tuple[str, ...]) -> ModuleSpec | None:
    """Where a top-level module is, without importing it; None for what is a part of Python, or is not there."""
    if not top or top in sys.stdlib_module_names:
        return None
    try:
        # The second way finds what was installed to be edited in its place.
        return PathFinder.find_spec(top, list(search)) or importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return None


def _is_installed(spec: ModuleSpec) -> bool:
    places = [sysconfig.get_path(name) for name in ("purelib", "platlib")]
    at = [spec.origin, *(spec.submodule_search_locations or [])]
    found = [Path(place) for place in at if place and place != "namespace"]
    return any(
        {"site-packages", "dist-packages"} & set(path.parts) or any(path.is_relative_to(place) for place in places)
        for path in found
    )


def _prefixes(name: str) -> Iterator[str]:
    """`a`, `a.b` and `a.b.c` for `a.b.c`."""
    parts = name.split(".")
    yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _imports(content: bytes) -> Iterator[tuple[str, int]]:
    """The dotted names that code imports, each with the dots before it."""
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return  # Python says so itself where the file is imported.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{node.module}." if node.module else ""
            yield from ((f"{module}{alias.name}", node.level) for alias in node.names)


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# The packages that can change the result of a stage, by their names on PyPI.
PACKAGES = {
    "preprocess": ("matplotlib", "numpy", "pillow"),
    "train": ("lightning", "numpy", "onnx", "onnx-ir", "onnxscript", "timm", "torch", "torchvision"),
    "evaluate": ("captum", "matplotlib", "numpy", "onnxruntime", "pandas", "pillow", "torch", "torchmetrics"),
}
# What packages are called that are imported under another name.
IMPORTED_AS = {"PIL": "pillow", "onnx_ir": "onnx-ir", "pillow_heif": "pillow-heif", "sklearn": "scikit-learn"}
# What reads images in folders and no other data; it need not be installed.
IMAGE_PACKAGES = "pillow_heif"
# Variables by which libraries compute otherwise: precision, algorithms, instructions, the compiler's choices.
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "BLIS_ARCH_TYPE", "CUBLAS*", "CUDNN_*", "DNNL_*", "KMP_DETERMINISTIC_REDUCTION", "MKL_CBWR*",
    "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC", "OMP_SCHEDULE", "ONEDNN_*", "OPENBLAS_CORETYPE", "PYTORCH_*",
    "TORCHINDUCTOR_*", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_*", "TORCH_CUDNN_*", "TORCH_LINALG_*",
    "TRITON_*",
)  # fmt: skip
# Those among them that are about caches, memory, threads, paths and messages alone.
NON_NUMERIC_PACKAGES = (
    "CUBLAS_LOG*", "CUBLASLT_LOG*", "CUDNN_LOG*", "CUDNN_PATH", "*_CACHE", "*_CACHE_*", "*_DUMP*", "*_HOME", "*_PATH",
    "*_PROFILE*", "*_VERBOSE*", "PYTORCH_ALLOC_CONF", "PYTORCH_BUILD_*", "PYTORCH_CUDA_ALLOC_CONF",
    "PYTORCH_HIP_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING", "PYTORCH_NVML_*", "PYTORCH_TEST_*", "PYTORCH_VERSION",
    "TORCHINDUCTOR_COMPILE_THREADS", "TORCHINDUCTOR_WORKER_*", "TRITON_*_DIR", "TRITON_DEBUG",
)  # fmt: skip


def versions(stage: str, imported: Iterable[str] = ()) -> dict[str, str]:
    """The versions of the packages that can change the result of a stage, and of others that are imported there.

    Public versions: a build's own suffix, such as that of torch for CPUs (`+cpu`), is left out.
    """
    names = {*PACKAGES.get(stage, ()), *(name for top in imported for name in _distributions(top))}
    return {name: _version(name) for name in sorted(names)}


def variables(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables that are set and change numbers, with their values."""
    environment = _at_start() if environment is None else environment
    return {name: value for name, value in sorted(environment.items()) if _changes_numbers(name)}


@functools.cache
def _at_start() -> dict[str, str]:
    """The variables as they were at the first call: libraries set some themselves."""
    return {name: os.environ.get(name, "") for name in list(os.environ)}  # other threads change it


def _changes_numbers(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in VARIABLES) and not any(
        fnmatchcase(name, pattern) for pattern in NON_NUMERIC_PACKAGES
    )


def _distributions(top: str) -> list[str]:
    """The packages that bring a module, by their names on PyPI."""
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
