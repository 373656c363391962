"""Compute the features of a frozen network once, and keep them in .cache/features.

The features of an image are the input of the classifier. Where the augmentation mirrors images at random, they are
computed for each image and its mirror image, and the same random numbers choose between the two.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn

from cifar_pipeline.config.compose import digest
from cifar_pipeline.config.source_files import loaded_sources
from cifar_pipeline.data.dataset import Dataset, open_memmap
from cifar_pipeline.data.transforms import Augmentation
from cifar_pipeline.models.build import NormalizedModel
from cifar_pipeline.training.finetuning import head_of
from cifar_pipeline.utils.atomic import atomic_write, exclusive_lock
from cifar_pipeline.utils.console import progress_bar
from cifar_pipeline.utils.file_hashes import append_digest, is_intact
from cifar_pipeline.utils.paths import keep_newest, runs_cache_dir

log = logging.getLogger(__name__)

# Width of the image that shows what a mirroring augmentation does: its two pixels change places.
PROBE = torch.tensor([0, 1], dtype=torch.uint8).view(1, 1, 2, 1)


@dataclass(frozen=True)
class FeatureCache:
    """Features of the images of a dataset, computed where they are not in the cache yet.

    Args:
        model: the network, whose layers before the head are frozen.
        head: name of the head in the network.
        dataset: the images.
        is_mirrored: whether the train split's mirror images have features, too.
        batch_size: images per batch.
        use_bfloat16: whether they are computed in bfloat16.
        threads: torch's threads while they are computed.
        max_files: number of files that stay in the cache.
    """

    model: NormalizedModel
    head: str
    dataset: Dataset
    is_mirrored: bool
    batch_size: int
    use_bfloat16: bool
    threads: int
    max_files: int

    def open(self, split: str, device: torch.device) -> Tensor:
        """Return the features `[N, ...] float32` of a split, memory-mapped; with mirror images `[N, 2, ...]`.

        Args:
            split: of the dataset.
            device: on which they are computed.
        """
        folder = runs_cache_dir().with_name("features")
        path = folder / f"{self._key(split)}.npy"
        with exclusive_lock(path):
            if path.is_file() and not is_intact(path):
                log.warning(f"{path} is damaged: computing the features again.")
                path.unlink()
            if not path.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as tmp:
                    self._compute(split, device, tmp)
                    append_digest(tmp)  # NumPy ignores what follows the array in a file
            os.utime(path)
            features = torch.from_numpy(open_memmap(path))
        keep_newest(folder, "*.npy", self.max_files)
        return features if self._variants(split) > 1 else features[:, 0]

    def _key(self, split: str) -> str:
        """Return a hash of everything that decides the features."""
        state = self.model.state_dict()
        tensors = sha256()
        for name, value in sorted(state.items()):
            if not name.startswith(f"net.{self.head}."):
                tensors.update(name.encode())
                tensors.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        code = loaded_sources().used("", [f"{type(self.model.net).__module__}.{type(self.model.net).__qualname__}"])
        return digest(
            {
                "tensors": tensors.hexdigest(),
                "images": self.dataset.hashes[f"{split}/images"],
                "layers": repr(self.model),
                "size": self.model.network_input.size,
                "mirrored": self._variants(split),
                "bfloat16": self.use_bfloat16,
                "code": code.hashes,
                "versions": {package: version(package) for package in ("torch", "timm", "torchvision")},
            }
        )

    def _variants(self, split: str) -> int:
        return 2 if self.is_mirrored and split == "train" else 1

    def _compute(self, split: str, device: torch.device, path: Path) -> None:
        """Write the features of a split to `path`."""
        images, _ = self.dataset.split(split)
        variants, output = self._variants(split), None
        model = self.model
        with (
            evaluation_mode(model),
            torch_threads(self.threads),
            progress_bar(f"Features of the {split} images", len(images), transient=True) as advance,
            torch.inference_mode(),
            torch.autocast(device.type, torch.bfloat16, enabled=self.use_bfloat16),
        ):
            for start in range(0, len(images), self.batch_size):
                batch = torch.from_numpy(np.ascontiguousarray(images[start : start + self.batch_size])).to(device)
                for variant in range(variants):
                    features = head_input(model, self.head, batch.flip(2) if variant else batch).float().cpu().numpy()
                    if output is None:
                        shape = (len(images), variants, *features.shape[1:])
                        output = np.lib.format.open_memmap(path, "w+", np.float32, shape)
                    output[start : start + len(batch), variant] = features
                advance(len(batch))
        assert output is not None
        output.flush()


def cache_obstacle(
    model: NormalizedModel, head: str, augmentation: Augmentation, processes: int, shape: tuple[int, ...]
) -> str:
    """Return why a frozen network's features of images `[H, W, C]` cannot be computed once; empty if they can."""
    if not augmentation.only_mirrors:
        return "the augmentation does more than mirror images"
    if processes > 1:
        return "several processes share each batch"
    return "" if _ends_with_head(model, head, shape) else "the classifier is not the last operation"


def _ends_with_head(model: NormalizedModel, head: str, shape: tuple[int, ...]) -> bool:
    """Return whether the head's output are the logits, tried on two images of a shape."""
    images = torch.randint(0, 256, (2, *shape), dtype=torch.uint8, generator=Generator().manual_seed(0))
    with torch.inference_mode(), evaluation_mode(model):
        expected = model(images)
        actual = head_of(model, head)(head_input(model, head, images))
    return actual.shape == expected.shape and torch.allclose(actual, expected, atol=1e-5)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with this number of threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and each of its layers back into its own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def head_input(model: NormalizedModel, head: str, images: Tensor) -> Tensor:
    """Return the input of the head for raw images `[N, H, W, C] uint8`."""
    captured: list[Tensor] = []

    def capture(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        captured.append(arguments[0])

    hook = head_of(model, head).register_forward_pre_hook(capture)
    try:
        model(images)
    finally:
        hook.remove()
    return captured[0]


def choose_variant(augmentation: Augmentation) -> Augmentation:
    """Return the augmentation of cached features `[B, V, ...]`, which draws the same numbers as that of the images."""

    def choose(features: Tensor, generator: Generator, flip_mask: Tensor) -> Tensor:
        images = PROBE.to(features.device).expand(len(features), -1, -1, -1)
        for transform in augmentation.transforms:
            images = transform.function(images, generator, flip_mask)
        return features[torch.arange(len(features), device=features.device), images[:, 0, 0, 0].long()]

    return Augmentation.of(choose)
