"""Keep converted ONNX graphs, without weights, in .cache/graphs: the conversion of a small network takes a second."""

import logging
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from onnx import ModelProto

from cifar_pipeline.utils.atomic import atomic_write
from cifar_pipeline.utils.file_hashes import DIGEST_BYTES, append_digest, is_intact
from cifar_pipeline.utils.paths import keep_newest, main_workspace

log = logging.getLogger(__name__)


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
            # On a full disk the next training converts the network again.
            with suppress(OSError):
                _write(path, graph, weights)
                keep_newest(path.parent, "*.onnx", self.max_files)
        return graph


def _read(path: Path) -> ModelProto | None:
    try:
        if not is_intact(path):
            log.warning(f"{path} is damaged: converting the network again.")
            return None
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    model = ModelProto()
    model.ParseFromString(content[:-DIGEST_BYTES])
    return model


def _write(path: Path, graph: ModelProto, weights: Collection[str]) -> None:
    stored = ModelProto()
    stored.CopyFrom(graph)
    for tensor in stored.graph.initializer:
        if tensor.name in weights:
            tensor.ClearField("raw_data")
    with atomic_write(path) as tmp:
        tmp.write_bytes(stored.SerializeToString(deterministic=True))
        append_digest(tmp)
