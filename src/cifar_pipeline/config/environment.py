"""What of the environment changes numbers: the versions of the packages that compute, and variables that they read."""

import functools
import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, packages_distributions, version

# The packages that can change the result of a stage, by their names on PyPI.
PACKAGES = {
    "preprocess": ("matplotlib", "numpy", "pillow"),
    "train": ("lightning", "numpy", "onnx", "onnx-ir", "onnxscript", "timm", "torch", "torchvision"),
    "evaluate": ("captum", "matplotlib", "numpy", "onnxruntime", "pandas", "pillow", "torch", "torchmetrics"),
}
# What packages are called that are imported under another name.
IMPORTED_AS = {"PIL": "pillow", "onnx_ir": "onnx-ir", "pillow_heif": "pillow-heif", "sklearn": "scikit-learn"}
# What reads pictures in folders and no other data; it need not be installed.
FOR_PICTURES = "pillow_heif"
# Variables by which libraries compute otherwise: precision, algorithms, instructions, the compiler's choices.
VARIABLES = (
    "ATEN_CPU_CAPABILITY", "BLIS_ARCH_TYPE", "CUBLAS*", "CUDNN_*", "DNNL_*", "KMP_DETERMINISTIC_REDUCTION", "MKL_CBWR*",
    "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS", "NPY_DISABLE_CPU_FEATURES", "NPY_ENABLE_CPU_FEATURES",
    "NVIDIA_TF32_OVERRIDE", "OMP_DYNAMIC", "OMP_SCHEDULE", "ONEDNN_*", "OPENBLAS_CORETYPE", "PYTORCH_*",
    "TORCHINDUCTOR_*", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TORCH_BLAS_PREFER_*", "TORCH_CUDNN_*", "TORCH_LINALG_*",
    "TRITON_*",
)  # fmt: skip
# Those among them that are about caches, memory, threads, paths and messages alone.
NO_NUMBERS = (
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
        fnmatchcase(name, pattern) for pattern in NO_NUMBERS
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
