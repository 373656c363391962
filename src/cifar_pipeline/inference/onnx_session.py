"""Run a model file with ONNX Runtime: raw images in, logits and probabilities out. Imports no torch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from cifar_pipeline.inference.onnx_check import CheckedGraph, CorruptModel, UnsafeModel, check_file
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.file_hashes import changed_message, has_changed
from cifar_pipeline.utils.paths import MODEL_FILE
from cifar_pipeline.utils.text import one_line

INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME = "images", "logits", "probabilities"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# Limit of ONNX Runtime's CPU memory for weights and values, for any model.
MAX_MEMORY_BYTES = 4 << 30
# Limit of the values of a micro-batch, summed over all operations.
MICRO_BATCH_BYTES = 512 << 20


@dataclass(frozen=True)
class OnnxSession:
    """An open model: image `shape` `(H, W, C)`, number of `classes`, and the metadata properties of the file.

    `device` is "cuda", or "cpu, 2 threads". `bytes_per_image` is the sum of the values computed for one image.
    """

    session: onnxruntime.InferenceSession
    shape: tuple[int, ...]
    classes: int
    metadata: dict[str, str]
    bytes_per_image: int
    device: str

    @staticmethod
    def open(folder: Path, threads: int, accelerator: str = "auto") -> "OnnxSession":
        """Check and open model.onnx in `folder`, on a GPU if ONNX Runtime can use one.

        Args:
            threads: number of threads on a CPU.
            accelerator: as in conf/runtime: `auto`, `cpu`, `gpu`, `cuda` or `mps`.

        Raises:
            UserError: there is no model, it is damaged or unsafe, or this version of ONNX Runtime can't open it.
        """
        path = folder / MODEL_FILE
        if not path.exists():
            raise UserError(f"There is no model in {folder}: `dvc repro train` makes one.")
        try:
            checked = check_file(path)
        except CorruptModel as error:
            raise UserError(f"{path} is damaged ({error}): `dvc repro -f train` makes it again.") from None
        except UnsafeModel as error:
            raise UserError(f"{path} was not opened because {error}. Use a model made by this project.") from None
        if has_changed(path):
            raise UserError(changed_message(path))
        try:
            return open_checked(checked, threads, accelerator)
        except RuntimeError as error:
            raise UserError(f"{path} can't be opened ({error}): `dvc repro -f train` makes it again.") from None

    def predict(
        self, images: np.ndarray, batch_size: int, on_progress: Callable[[float], None] = lambda _: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compute logits and probabilities, each `[N, K] float32`, of raw images `[N, H, W, C] uint8`.

        The images may be memory-mapped. A micro-batch has `batch_size` images, fewer if their values would need too
        much memory. `on_progress` is called with the number of images of each.

        Raises:
            UserError: the model fails, or needs more memory than the limit.
        """
        micro_batch_size = (
            batch_size if self.device == "cuda" else max(1, min(batch_size, MICRO_BATCH_BYTES // self.bytes_per_image))
        )
        logits = np.empty((len(images), self.classes), np.float32)
        probabilities = np.empty_like(logits)
        for start in range(0, len(images), micro_batch_size):
            micro_batch = np.ascontiguousarray(images[start : start + micro_batch_size])
            try:
                outputs = self.session.run([LOGITS_NAME, PROBABILITIES_NAME], {INPUT_NAME: micro_batch})
            except Exception as error:  # ONNX Runtime's errors have no other common base class
                raise UserError(
                    f"The model failed ({_describe_error(error)}). Use a model made by this project."
                ) from None
            if any(np.shape(output) != (len(micro_batch), self.classes) for output in outputs):
                raise UserError("The model returned no output for some images. Use a model made by this project.")
            rows = slice(start, start + len(micro_batch))
            logits[rows], probabilities[rows] = outputs
            on_progress(len(micro_batch))
        return logits, probabilities


def open_checked(checked: CheckedGraph, threads: int, accelerator: str = "cpu") -> OnnxSession:
    """Open a checked model. Raises `RuntimeError` if ONNX Runtime can't."""
    _limit_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # errors are raised as exceptions
    for key, value in {
        "session.use_env_allocators": "1",
        # The ORT format would be read by another parser than the check used.
        "session.load_model_format": "ONNX",
        # Idle threads should not occupy a core.
        "session.intra_op.allow_spinning": "0",
    }.items():
        options.add_session_config_entry(key, value)
    gpu_providers = (
        [CUDA] if accelerator in ("auto", "gpu", "cuda") and CUDA in onnxruntime.get_available_providers() else []
    )
    try:
        session = onnxruntime.InferenceSession(
            checked.content,
            options,
            providers=[*gpu_providers, CPU],
            # It would allocate outside the limited arena; the exporter has folded the constants of our files.
            disabled_optimizers=["ConstantFolding"],
        )
    except Exception as error:  # ONNX Runtime's errors have no other common base class
        raise RuntimeError(_describe_error(error)) from None
    on_gpu = session.get_providers()[0] == CUDA
    device = "cuda" if on_gpu else f"cpu, {threads} thread{'s' if threads > 1 else ''}"
    return OnnxSession(session, checked.shape, checked.classes, checked.metadata, checked.bytes_per_image, device)


@functools.cache
def _limit_memory() -> None:
    """Let all sessions of this process share one arena of `MAX_MEMORY_BYTES`."""
    memory_info = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    arena = onnxruntime.OrtArenaCfg(
        {
            "max_mem": MAX_MEMORY_BYTES,
            "arena_extend_strategy": 1,  # as requested, instead of the next power of two
            "initial_chunk_size_bytes": -1,
            "max_dead_bytes_per_chunk": -1,
        }
    )
    onnxruntime.create_and_register_allocator(memory_info, arena)


def _describe_error(error: Exception) -> str:
    """Shorten an error of ONNX Runtime to its message, without the location in its source."""
    text = one_line(error)
    if "Available memory of" in text or "bad_alloc" in text:
        return f"it needs more than {MAX_MEMORY_BYTES >> 30} GB of memory"
    return text.rpartition(" : ")[2][:150].rstrip(".")
