"""Run a model file in ONNX Runtime: raw images in, logits and probabilities out. Imports no torch."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from cifar_pipeline.inference.onnx_check import CheckedGraph, CorruptModel, UnsafeModel, check_file
from cifar_pipeline.utils.errors import UserError

MODEL_FILE, WEIGHTS_FILE = "model.onnx", "weights.safetensors"
INPUT_NAME, LOGITS_NAME, PROBABILITIES_NAME = "images", "logits", "probabilities"
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# What ONNX Runtime may take for weights and values on a CPU, whatever a file makes it compute.
MAX_MEMORY_BYTES = 4 << 30
# What the values of the images that are computed at once may take, all of them kept.
MICRO_BATCH_BYTES = 512 << 20


@dataclass(frozen=True)
class OnnxSession:
    """An open model: images of `shape` `(H, W, C)`, `classes` outputs, the texts kept in the file.

    `device` is "cuda", or "cpu, 2 threads". `image_bytes` is what the values computed for one image take.
    """

    session: onnxruntime.InferenceSession
    shape: tuple[int, ...]
    classes: int
    metadata: dict[str, str]
    bytes_per_image: int
    device: str

    @staticmethod
    def open(folder: Path, threads: int, accelerator: str = "auto") -> "OnnxSession":
        """Open model.onnx in `folder`, on a GPU where ONNX Runtime can use one. Nothing that it may hold is run.

        Args:
            threads: that compute, on a CPU.
            accelerator: as in conf/runtime: `auto`, `cpu`, `gpu`, `cuda` or `mps`.

        Raises:
            Refusal: there is no model, a damaged one, one that could do more than answer for images, or one that
                this ONNX Runtime can't open.
        """
        path = folder / MODEL_FILE
        if not path.exists():
            raise UserError(f"There is no model in {folder}: `dvc repro train` makes one.")
        try:
            checked = check_file(path)
        except CorruptModel as damage:
            raise UserError(f"{path} is damaged ({damage}): `dvc repro -f train` makes it again.") from None
        except UnsafeModel as danger:
            raise UserError(f"{path} is not opened, because {danger}: use a model that this project made.") from None
        try:
            return open_checked(checked, threads, accelerator)
        except RuntimeError as error:
            raise UserError(f"{path} can't be opened ({error}): `dvc repro -f train` makes it again.") from None

    def predict(
        self, images: np.ndarray, batch_size: int, advance: Callable[[float], None] = lambda _: None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits and probabilities, each `[N, K] float32`, of raw images `[N, H, W, C] uint8`.

        The images may be memory-mapped. `batch_size` go through the network at once, fewer where they would take too
        much memory. `advance` is told how many more are done.

        Raises `Refusal` where the model needs more memory than it may have.
        """
        portion = (
            batch_size if self.device == "cuda" else max(1, min(batch_size, MICRO_BATCH_BYTES // self.bytes_per_image))
        )
        logits = np.empty((len(images), self.classes), np.float32)
        probabilities = np.empty_like(logits)
        for start in range(0, len(images), portion):
            part = np.ascontiguousarray(images[start : start + portion])
            try:
                found = self.session.run([LOGITS_NAME, PROBABILITIES_NAME], {INPUT_NAME: part})
            except Exception as error:  # ONNX Runtime's errors have no class in common but this one
                raise UserError(
                    f"The model does not answer ({_describe_error(error)}): use one that this project made."
                ) from None
            if any(np.shape(values) != (len(part), self.classes) for values in found):
                raise UserError("The model does not give an answer for each image: use one that this project made.")
            logits[start : start + len(part)], probabilities[start : start + len(part)] = found
            advance(len(part))
        return logits, probabilities


def open_checked(checked: CheckedGraph, threads: int, accelerator: str = "cpu") -> OnnxSession:
    """Open a graph that was checked. Raises `RuntimeError` where ONNX Runtime can't."""
    _limit_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # what fails is told by an exception
    for key, value in {
        "session.use_env_allocators": "1",
        # The other format is parsed by other code than what was checked.
        "session.load_model_format": "ONNX",
        # A thread that waits leaves its core to others.
        "session.intra_op.allow_spinning": "0",
    }.items():
        options.add_session_config_entry(key, value)
    wanted = [CUDA] if accelerator in ("auto", "gpu", "cuda") and CUDA in onnxruntime.get_available_providers() else []
    try:
        session = onnxruntime.InferenceSession(
            checked.content,
            options,
            providers=[*wanted, CPU],
            # It would compute constants without the limit on memory; the exporter has computed those of our files.
            disabled_optimizers=["ConstantFolding"],
        )
    except Exception as error:  # ONNX Runtime's errors have no class in common but this one
        raise RuntimeError(_describe_error(error)) from None
    on_gpu = session.get_providers()[0] == CUDA
    device = "cuda" if on_gpu else f"cpu, {threads} thread{'s' if threads > 1 else ''}"
    return OnnxSession(session, checked.shape, checked.classes, checked.metadata, checked.bytes_per_image, device)


@functools.cache
def _limit_memory() -> None:
    """Let all sessions of this process share one arena of `MOST_MEMORY` bytes."""
    place = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    arena = onnxruntime.OrtArenaCfg(
        {
            "max_mem": MAX_MEMORY_BYTES,
            "arena_extend_strategy": 1,  # as much as is asked for, instead of the next power of two
            "initial_chunk_size_bytes": -1,
            "max_dead_bytes_per_chunk": -1,
        }
    )
    onnxruntime.create_and_register_allocator(place, arena)


def _describe_error(error: Exception) -> str:
    """ONNX Runtime's words without the places in its own source."""
    text = " ".join(str(error).split())
    if "Available memory of" in text or "bad_alloc" in text:
        return f"it needs more than {MAX_MEMORY_BYTES >> 30} GB of memory"
    return text.rpartition(" : ")[2][:150].rstrip(".")
