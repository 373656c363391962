"""Keep converted ONNX graphs, without weights, in .cache/graphs: the conversion of a small network takes a second."""

import logging
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from onnx import ModelProto

from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.paths import keep_newest, main_workspace

log = logging.getLogger(__name__)

DIGEST_BYTES = sha256().digest_size


@dataclass(frozen=True)
class GraphCache:
    """Files with the graphs of networks. Each ends with the SHA-256 of its content.

    Args:
        max_files: number of files that stay; 0 for none.
    """

    max_files: int

    def get(self, key: str, weights: Collection[str], convert: Callable[[], ModelProto]) -> ModelProto:
        """Return the graph of this key, converted where there is no intact file of it.

        Args:
            key: hash of everything that decides the graph.
            weights: names of the initializers whose values are not stored; in a graph from a file they are empty.
            convert: returns the graph.
        """
        path = main_workspace() / ".cache" / "graphs" / f"{key}.onnx"
        if self.max_files and (graph := _read(path)):
            return graph
        graph = convert()
        if self.max_files:
            # What a full disk prevents here is found again by the next training.
            with suppress(OSError):
                _write(path, graph, weights)
                keep_newest(path.parent, "*.onnx", self.max_files)
        return graph


def _read(path: Path) -> ModelProto | None:
    try:
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    graph, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if sha256(graph).digest() != digest:
        log.warning(f"{path} is damaged: converting the network again.")
        return None
    model = ModelProto()
    model.ParseFromString(graph)
    return model


def _write(path: Path, graph: ModelProto, weights: Collection[str]) -> None:
    stored = ModelProto()
    stored.CopyFrom(graph)
    for tensor in stored.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("raw_data")
    content = stored.SerializeToString(deterministic=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as tmp:
        tmp.write_bytes(content + sha256(content).digest())
