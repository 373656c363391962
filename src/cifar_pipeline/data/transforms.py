"""Apply the transforms of conf/augmentation to batches of images, with random numbers that follow from the position.

A transform is one of torchvision.transforms.v2, or any other callable. Those draw once for each call, so each image
gets a call of its own, with its own stream of random numbers; `per_batch` and `mixes_labels` transforms get one for
each batch. Functions of `cifar_pipeline.data.augmentation` draw for each image of a whole chunk at once.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from cifar_pipeline.config.validation import instantiate_option, target_config, target_names
from cifar_pipeline.data.augmentation import only_mirrors
from cifar_pipeline.data.random_streams import RandomStream, Streams, generator, preserved_generators
from cifar_pipeline.data.workers import ImageWorkers
from cifar_pipeline.utils.errors import UserError
from cifar_pipeline.utils.text import one_line

# Its transforms draw from torch's generators alone.
TORCHVISION = "torchvision.transforms.v2."
# Fewer images are transformed in one process.
MIN_IMAGES_FOR_WORKERS = 32
# Images and draws of the check before a training.
PROBE_IMAGES, PROBE_EPOCHS = 4, 4

ChunkFunction = Callable[[Tensor, Generator, Tensor], Tensor]


@dataclass(frozen=True)
class Chunk:
    """Some batches of an epoch, which are gathered and augmented at once.

    Attributes:
        images: `[N, H, W, C] uint8`, a copy of the dataset's.
        labels: `[N] int64`, or `[N, K] float32` once they are mixed.
        flip_mask: `[N] bool`, true for an image in every other epoch.
        sizes: number of images in each batch.
        positions: position in the epoch of each image.
        seed, epoch: of the training.
        index: of the chunk in the epoch.
        first_batch: position in the epoch of the first batch.
    """

    images: Tensor
    labels: Tensor
    flip_mask: Tensor
    sizes: list[int]
    positions: list[int]
    seed: int
    epoch: int
    index: int
    first_batch: int

    def generator(self, stage: int) -> Generator:
        """Create the generator of a function that draws for the whole chunk; `stage` is its position in the chain."""
        counters = (self.epoch, self.index, stage) if stage else (self.epoch, self.index)
        return generator(self.images.device, self.seed, RandomStream.AUGMENTATION, *counters)

    def select(self, indices: Tensor, sizes: list[int]) -> "Chunk":
        """Return some of the images, in batches of these sizes."""
        return replace(
            self,
            images=self.images[indices],
            labels=self.labels[indices],
            flip_mask=self.flip_mask[indices],
            sizes=sizes,
            positions=[self.positions[index] for index in indices.tolist()],
        )


@dataclass(frozen=True)
class Transform:
    """A transform and how it is called.

    Attributes:
        name: its name in conf/augmentation.
        function: what is called.
        for_chunk: with the images `[N, H, W, C] uint8` of a chunk, a generator and the flip mask.
        per_batch: with the images `[N, C, H, W] uint8` of each batch; otherwise with each image `[C, H, W] uint8`.
        mixes_labels: with the images `[N, C, H, W] float32`, 0 to 255, and the labels `[N, K] float32` of each batch.
        draws_from_torch: whether it draws from torch's generators alone.
        pil_on_cpu: with a PIL image instead, on a CPU.
    """

    name: str
    function: Callable[..., Any]
    for_chunk: bool = False
    per_batch: bool = False
    mixes_labels: bool = False
    draws_from_torch: bool = False
    pil_on_cpu: bool = False

    @property
    def for_image(self) -> bool:
        """Return whether it is called with single images."""
        return not (self.for_chunk or self.per_batch or self.mixes_labels)

    def call(self, images: Tensor, *labels: Tensor) -> Any:
        """Call the function, and check the images that it returns. Raises UserError if it fails on them."""
        hint = (
            " Transforms get tensors, not PIL images; one that needs a batch has `per_batch: true`, and one that mixes "
            "labels `mixes_labels: true`."
        )
        result = self._call(describe(images), hint if self.for_image else "", images, *labels)
        changed = result[0] if self.mixes_labels and isinstance(result, tuple | list) and result else result
        if not isinstance(changed, Tensor):
            raise UserError(
                f"augmentation.{self.name} turns {describe(images)} into {type(changed).__name__}: a transform must "
                "return a tensor."
            )
        if changed.dtype != images.dtype or changed.ndim != images.ndim or changed.shape[-3] != images.shape[-3]:
            raise UserError(
                f"augmentation.{self.name} turns {describe(images)} into {describe(changed)}: a transform must keep "
                "the type and the number of channels; scaling and normalization are in the model (normalization=...)."
            )
        return result

    def call_pil(self, image: Image.Image) -> Image.Image:
        """Call the function with a PIL image. Raises UserError if it fails or returns another kind of image."""
        result = self._call("a PIL image", " Without `pil_on_cpu: true` it gets tensors.", image)
        if not isinstance(result, Image.Image) or result.mode != image.mode:
            raise UserError(f"augmentation.{self.name} does not return a PIL image of mode {image.mode}.")
        return result

    def _call(self, description: str, hint: str, *arguments: Any) -> Any:
        try:
            return self.function(*arguments)
        except UserError:
            raise
        except Exception as error:
            reason = one_line(error)[:200].rstrip(".")
            raise UserError(f"augmentation.{self.name} fails on {description}: {reason}.{hint}") from error


class Augmentation:
    """The transforms of the training images, in their order.

    Args:
        transforms: the transforms.
        classes: number of classes, for labels that are mixed.
        processes: number of processes that share transforms of single images on a CPU.
    """

    def __init__(self, transforms: Sequence[Transform] = (), classes: int = 0, processes: int = 1) -> None:
        self.transforms, self.classes = tuple(transforms), classes
        # Transforms of single images are applied together.
        self.steps: list[Transform | ImageTransforms] = []
        for for_image, group in groupby(transforms, lambda transform: transform.for_image):
            members = list(group)
            self.steps += [ImageTransforms(members, len(self.steps), processes)] if for_image else members
        self.last_joint = max((i for i, step in enumerate(self.steps) if isinstance(step, Transform)), default=-1)

    @staticmethod
    def of(*functions: ChunkFunction) -> "Augmentation":
        """Return the augmentation by functions that take the images of a chunk, a generator and the flip mask."""
        return Augmentation([Transform("function", function, for_chunk=True) for function in functions])

    @property
    def mixes_labels(self) -> bool:
        """Return whether the labels become `[N, K] float32`."""
        return any(transform.mixes_labels for transform in self.transforms)

    @property
    def only_mirrors(self) -> bool:
        """Return whether each image at most becomes its mirror image."""
        return all(only_mirrors(transform.function) for transform in self.transforms)

    def apply(self, chunk: Chunk, own: Tensor | None, sizes: list[int]) -> tuple[Tensor, Tensor]:
        """Return the augmented images `[M, H, W, C] uint8` and labels of this process.

        Transforms of single images see only those. Earlier ones see all images wherever a later one takes a batch.

        Args:
            chunk: the images of all processes.
            own: indices of the images of this process; None: all.
            sizes: number of images of this process in each batch.
        """
        for number, step in enumerate(self.steps):
            if own is not None and number > self.last_joint:
                chunk, own = chunk.select(own, sizes), None
            if isinstance(step, ImageTransforms):
                chunk = replace(chunk, images=step(chunk))
            else:
                chunk = self._transform_batches(chunk, step, number)
        return (chunk.images, chunk.labels) if own is None else (chunk.images[own], chunk.labels[own])

    def _transform_batches(self, chunk: Chunk, transform: Transform, stage: int) -> Chunk:
        """Apply a transform that takes the whole chunk or whole batches."""
        if transform.for_chunk:
            return replace(chunk, images=transform.function(chunk.images, chunk.generator(stage), chunk.flip_mask))
        labels = chunk.labels
        if transform.mixes_labels and labels.ndim == 1:
            labels = one_hot(labels, self.classes).float()
        images, mixed = [], []
        streams = Streams.of(chunk.seed, RandomStream.TRANSFORM, chunk.epoch, stage)
        with preserved_generators(labels.device):
            batches = zip(torch.split(chunk.images, chunk.sizes), torch.split(labels, chunk.sizes), strict=True)
            for number, (batch, batch_labels) in enumerate(batches, chunk.first_batch):
                streams.seed_defaults(number, labels.device)
                channels_first = batch.permute(0, 3, 1, 2)
                if transform.mixes_labels:
                    result, batch_labels = _mix(transform, channels_first, batch_labels)
                else:
                    result = transform.call(channels_first)
                images.append(result.permute(0, 2, 3, 1))
                mixed.append(batch_labels)
        return replace(chunk, images=torch.cat(images).contiguous(), labels=torch.cat(mixed))

    def preview(self, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return images `[N, H, W, C] uint8` augmented as one batch: `[N, H', W', C] uint8`."""
        augmented: np.ndarray = self._augment(torch.from_numpy(images).clone(), torch.from_numpy(labels).long())[
            0
        ].numpy()
        return augmented

    def _augment(self, images: Tensor, labels: Tensor, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return images and labels augmented as the only batch of an epoch."""
        count = len(images)
        mask, positions = torch.arange(count) % 2 == 0, list(range(count))
        chunk = Chunk(images, labels, mask, [count], positions, seed=0, epoch=epoch, index=0, first_batch=0)
        return self.apply(chunk, None, [count])

    def check(self, shape: tuple[int, int, int], network_size: int) -> None:
        """Raise UserError if a transform fails on the dataset's images, or gives others than the network takes.

        Args:
            shape: of the dataset's images, `(H, W, C)`.
            network_size: height and width of the images that the network sees.
        """
        if not self.transforms:
            return
        random = Generator().manual_seed(0)
        for epoch in range(PROBE_EPOCHS):
            images = torch.randint(0, 256, (PROBE_IMAGES, *shape), generator=random).to(torch.uint8)
            labels = torch.arange(PROBE_IMAGES) % max(1, self.classes)
            result, result_labels = self._augment(images, labels, epoch)
            height, width, channels = result.shape[1:]
            if result.dtype != torch.uint8 or channels != shape[2]:
                raise UserError(
                    f"augmentation turns {describe(images)} into {describe(result)}: it must keep the type and the "
                    "number of channels."
                )
            if (height, width) not in (shape[:2], (network_size, network_size)):
                seen = f"{network_size}x{network_size}"
                names = ", ".join(transform.name for transform in self.transforms)
                raise UserError(
                    f"augmentation ({names}) turns images of {shape[0]}x{shape[1]} pixels into {height}x{width}, but "
                    f"the network sees {seen}: write `size: null` in a transform that resizes or crops, or set its "
                    f"size to {network_size}."
                )
            if self.mixes_labels and result_labels.shape != (PROBE_IMAGES, self.classes):
                raise UserError(
                    f"augmentation turns labels {[PROBE_IMAGES, self.classes]} into {[*result_labels.shape]}: "
                    "a transform that mixes labels must keep their shape."
                )


def build_augmentation(options: Mapping[str, Any], network_size: int, classes: int, processes: int = 1) -> Augmentation:
    """Build the augmentation of conf/augmentation.

    Args:
        options: the transforms by name.
        network_size: height and width of the images that the network sees, which `size: null` means.
        classes: number of classes.
        processes: see `Augmentation`.
    """
    return Augmentation([_build(name, node, network_size) for name, node in options.items()], classes, processes)


def _build(name: str, node: Mapping[str, Any], network_size: int) -> Transform:
    size = {"size": network_size} if "size" in node and node["size"] is None else {}
    function = instantiate_option(node, f"augmentation.{name}", **size)
    return Transform(
        name,
        function,
        for_chunk={"generator", "flip_mask"} <= inspect.signature(function).parameters.keys(),
        per_batch=bool(node.get("per_batch")),
        mixes_labels=bool(node.get("mixes_labels")),
        draws_from_torch=all(
            target.startswith(TORCHVISION) for target in target_names(target_config(node, f"augmentation.{name}"))
        ),
        pil_on_cpu=bool(node.get("pil_on_cpu")),
    )


def _mix(transform: Transform, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mix the images `[N, C, H, W] uint8` and labels `[N, K] float32` of a batch; pixels are rounded."""
    result = transform.call(images.float(), labels)
    if not isinstance(result, tuple | list) or len(result) != 2:
        raise UserError(
            f"augmentation.{transform.name} returns {type(result).__name__}, but with `mixes_labels: true` it must "
            "return the images and the labels."
        )
    mixed, mixed_labels = result
    return mixed.round().clamp(0, 255).to(torch.uint8), mixed_labels.float()


@dataclass
class ImageTransforms:
    """Consecutive transforms of single images.

    Args:
        transforms: the transforms.
        stage: position in the augmentation.
        processes: number of processes that share the images of a chunk.
    """

    transforms: Sequence[Transform]
    stage: int
    processes: int = 1
    workers: ImageWorkers | None = None

    def __call__(self, chunk: Chunk) -> Tensor:
        """Apply the transforms to each image of a chunk with random numbers of its own, and return the images.

        Raises UserError if a transform fails, or if the images get different sizes.
        """
        images = chunk.images
        if not len(images):
            return images
        key = Streams.of(chunk.seed, RandomStream.TRANSFORM, chunk.epoch, self.stage).key
        if self.workers is not None and self.workers.fits(images):
            return self.workers(images, chunk.positions, key)
        with preserved_generators(images.device):
            first = self.transform(images[0], chunk.positions[0], key)
            if self._needs_workers(images):
                self.workers = self._start_workers(images, first.shape)
                return self.workers(images, chunk.positions, key)
            output = first.new_empty((len(images), *first.shape))
            output[0] = first
            for index, position in enumerate(chunk.positions[1:], 1):
                image = self.transform(images[index], position, key)
                self._require_size(image, first.shape)
                output[index] = image
        return output

    def transform(self, image: Tensor, position: int, key: tuple[int, int]) -> Tensor:
        """Apply the transforms to an image `[H, W, C] uint8`; its random numbers follow from position and key."""
        torch_only = all(transform.draws_from_torch for transform in self.transforms)
        Streams(key).seed_defaults(position, image.device, torch_only)
        return _transform_image(image, self.transforms)

    def _needs_workers(self, images: Tensor) -> bool:
        """Return whether several processes are worth it: for many images, and where a process can be forked safely."""
        is_linux_cpu = images.device.type == "cpu" and sys.platform == "linux"
        return self.processes > 1 and len(images) >= MIN_IMAGES_FOR_WORKERS and is_linux_cpu

    def _start_workers(self, images: Tensor, shape: tuple[int, ...]) -> ImageWorkers:
        """Start processes for at most as many images; each becomes one of `shape`."""

        def transform(image: Tensor, position: int, key: tuple[int, int]) -> Tensor:
            transformed = self.transform(image, position, key)
            self._require_size(transformed, shape)
            return transformed

        return ImageWorkers(transform, self.processes, len(images), images.shape[1:], shape)

    def _require_size(self, image: Tensor, shape: tuple[int, ...]) -> None:
        if image.shape != shape:
            names = " or ".join(transform.name for transform in self.transforms)
            raise UserError(
                f"augmentation: {names} gives images of different sizes, {shape[0]}x{shape[1]} and {image.shape[0]}x"
                f"{image.shape[1]} pixels: set a fixed size."
            )


def _transform_image(image: Tensor, transforms: Sequence[Transform]) -> Tensor:
    """Apply transforms to an image `[H, W, C] uint8`."""
    current: Tensor | Image.Image = image.permute(2, 0, 1)
    for transform in transforms:
        if transform.pil_on_cpu and image.device.type == "cpu":
            current = current if isinstance(current, Image.Image) else to_pil(current)
            current = transform.call_pil(current)
        else:
            current = transform.call(current if isinstance(current, Tensor) else to_tensor(current).permute(2, 0, 1))
    return to_tensor(current) if isinstance(current, Image.Image) else current.permute(1, 2, 0)


def to_pil(image: Tensor) -> Image.Image:
    """Convert an image `[1 or 3, H, W] uint8` to a PIL image of mode L or RGB."""
    pixels = image.numpy()
    if len(pixels) == 1:
        return Image.fromarray(pixels[0])
    if image.is_contiguous():
        # Several times as fast as to interleave the channels first.
        return Image.merge("RGB", [Image.fromarray(channel) for channel in pixels])
    return Image.fromarray(pixels.transpose(1, 2, 0))


def to_tensor(image: Image.Image) -> Tensor:
    """Convert a PIL image of mode L or RGB to `[H, W, 1 or 3] uint8`."""
    pixels = torch.from_numpy(np.array(image))
    return pixels if pixels.ndim == 3 else pixels.unsqueeze(2)


def describe(images: Tensor) -> str:
    """Describe a tensor of images, such as `a tensor [3, 32, 32] uint8`."""
    return f"a tensor {[*images.shape]} {str(images.dtype).removeprefix('torch.')}"
