"""Time the augmentations of conf/augmentation, and `photo` at 224 pixels against torchvision's usual loader.

    make bench-augmentation        (python benchmarks/augmentation_speed.py --repetitions 3)

The usual loader: torchvision's ImageFolder of JPEG files of 500x375 pixels, the same transforms on PIL images, a
DataLoader with a worker per core. Ours: `TensorLoader` over the images that `preprocess` has decoded once, at 280
pixels. Both loaders alternate in one process; each repetition takes all images once. The third side has decoded images
in memory, without reading and decoding.
"""

import environment  # noqa: F401

# isort: split

import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterable, Mapping
from contextlib import chdir
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from cifar_pipeline.config.compose import compose_config  # noqa: E402
from cifar_pipeline.data.loader import TensorLoader  # noqa: E402
from cifar_pipeline.data.transforms import build_augmentation  # noqa: E402
from cifar_pipeline.utils.process import disable_malloc_trim  # noqa: E402

STORED, SEEN, PHOTO = 280, 224, (500, 375)
SMALL = 32


def options(name: str) -> Mapping[str, Any]:
    """Return the transforms of a file of conf/augmentation by name."""
    with chdir(ROOT):
        transforms: Mapping[str, Any] = compose_config([f"augmentation={name}"]).augmentation
    return transforms


def photographs(count: int) -> np.ndarray:
    """Return smooth color images with noise `[N, H, W, 3] uint8`, which a JPEG file stores as it does photographs."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (count, 12, 16, 3)).astype(np.uint8)
    smooth = [np.asarray(Image.fromarray(image).resize(PHOTO, Image.Resampling.BICUBIC)) for image in coarse]
    noise = random.normal(0, 8, (count, PHOTO[1], PHOTO[0], 1))
    return np.stack([(image + part).clip(0, 255).astype(np.uint8) for image, part in zip(smooth, noise, strict=True)])


def seconds(batches: Iterable[Any]) -> float:
    """Take all batches, and return the time."""
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start


def ours(images: np.ndarray, name: str, network_size: int, batch_size: int) -> TensorLoader:
    """Return our loader over images in memory."""
    labels = torch.arange(len(images)) % 10
    augmentation = build_augmentation(options(name), network_size, 10, torch.get_num_threads())
    return TensorLoader(torch.from_numpy(images), labels, batch_size, seed=0, shuffle=True, augmentation=augmentation)


def pil_transforms() -> v2.Compose:
    """Return the transforms of `photo` for PIL images, in their usual order: erasing after the conversion."""
    values = options("photo")
    crop, erasing = values["random_resized_crop"], values["random_erasing"]
    return v2.Compose(
        [
            v2.RandomResizedCrop(SEEN, scale=list(crop["scale"]), ratio=list(crop["ratio"])),
            v2.RandomHorizontalFlip(),
            v2.TrivialAugmentWide(),
            v2.PILToTensor(),
            v2.RandomErasing(p=erasing["p"], scale=list(erasing["scale"]), ratio=list(erasing["ratio"])),
        ]
    )


class Decoded(Dataset):
    """Decoded images as PIL images."""

    def __init__(self, images: np.ndarray, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        self.images, self.transform = images, transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(Image.fromarray(self.images[index]))


def photo_at_224(count: int, repetitions: int) -> None:
    """Print images/s of `photo` at 224 pixels, ours and the usual ways."""
    with TemporaryDirectory() as folder:
        (Path(folder) / "class").mkdir()
        pixels = photographs(count)
        for index, image in enumerate(pixels):
            Image.fromarray(image).save(Path(folder) / "class" / f"{index:05}.jpg", quality=90)
        stored = np.stack([np.asarray(Image.fromarray(image).resize((STORED, STORED))) for image in pixels])
        workers = torch.get_num_threads()
        sides = {
            "ours": ours(stored, "photo", SEEN, 64),
            "ImageFolder of JPEG files": DataLoader(
                ImageFolder(folder, pil_transforms()), 64, shuffle=True, num_workers=workers, persistent_workers=True
            ),
            "decoded images": DataLoader(
                Decoded(pixels, pil_transforms()), 64, shuffle=True, num_workers=workers, persistent_workers=True
            ),
        }
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for name, batches in sides.items():
            if name != "ours":
                seconds(batches)
        # As `train` does; the workers of the others have started, and keep their defaults.
        disable_malloc_trim()
        for repetition in range(repetitions + 1):
            for name, batches in sides.items():
                rate = count / seconds(batches)
                if repetition:  # The first one starts the workers.
                    rates[name].append(rate)
    print(f"\nphoto, {SEEN} pixels, {count} images, {workers} threads or workers\n")
    print("| loader | images/s, median [range] | ours is faster by |\n| --- | --- | --- |")
    for name, values in rates.items():
        ratio = median(mine / theirs for mine, theirs in zip(rates["ours"], values, strict=True))
        print(f"| {name} | {median(values):,.0f} [{min(values):,.0f} - {max(values):,.0f}] | {ratio:.2f} |")


def small_images(count: int, repetitions: int) -> None:
    """Print the time per image of each augmentation on images of 32 pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, SMALL, SMALL, 3)).astype(np.uint8)
    print(f"\n{count:,} images of {SMALL} pixels, batches of 128\n")
    print("| augmentation | microseconds per image, median [range] |\n| --- | --- |")
    for path in sorted((ROOT / "conf" / "augmentation").glob("*.yaml")):
        batches = ours(pixels, path.stem, SMALL, 128)
        seconds(batches)
        times = [1e6 * seconds(batches) / count for _ in range(repetitions)]
        print(f"| {path.stem} | {median(times):,.2f} [{min(times):,.2f} - {max(times):,.2f}] |")


def main() -> None:
    arguments = ArgumentParser(description=__doc__)
    arguments.add_argument("--images", type=int, default=512, help="photographs at 224 pixels")
    arguments.add_argument("--small-images", type=int, default=8192, help="images of 32 pixels")
    arguments.add_argument("--repetitions", type=int, default=5)
    given = arguments.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    small_images(given.small_images, given.repetitions)
    photo_at_224(given.images, given.repetitions)


if __name__ == "__main__":
    main()
