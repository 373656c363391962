"""What every source yields: a data set as it was published, before anything is held back from its training part."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cifar_pipeline.console import Refusal
from cifar_pipeline.data.pictures import CROP

TRAIN, VAL, TEST = PARTS = ("train", "val", "test")

Images = NDArray[np.uint8]
Labels = NDArray[np.int64]
Indices = NDArray[np.int64]


class Gathered(Protocol):
    """Images `[N, H, W, C] uint8` that are read when they are asked for: more than memory may hold."""

    @property
    def dtype(self) -> np.dtype[np.uint8]: ...
    @property
    def ndim(self) -> int: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, indices: Indices, /) -> Images: ...


@dataclass(frozen=True)
class Official:
    """The official training and test parts.

    `classes` are the names in the order of the labels; images are `[N, H, W, C] uint8`, labels `[N] int64`. Where the
    source says itself which training images are to choose by, `held_back` has their indices. `train_names` and
    `test_names` are the images' files, if they had any; `fit` says how they were brought to their size.
    Raises Refusal where a source of one's own yields anything else.
    """

    classes: tuple[str, ...]
    train_images: Images | Gathered
    train_labels: Labels
    test_images: Images | Gathered
    test_labels: Labels
    held_back: Indices | None = None
    train_names: tuple[str, ...] = ()
    test_names: tuple[str, ...] = ()
    fit: str = CROP

    def __post_init__(self) -> None:
        parts = {
            "training": (self.train_images, self.train_labels),
            "test": (self.test_images, self.test_labels),
        }
        for part, (images, labels) in parts.items():
            if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != self.train_images.shape[1:]:
                raise Refusal(
                    f"The images of the {part} part are {images.dtype} {list(images.shape)}: a source must yield uint8 "
                    "[N, H, W, C], of one size in both parts."
                )
            if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
                raise Refusal(
                    f"The labels of the {part} part are {labels.dtype} {list(labels.shape)} for {len(images)} images: "
                    "a source must yield int64 [N], one for each image."
                )
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(self.classes):
                raise Refusal(
                    f"The labels of the {part} part run from {labels.min()} to {labels.max()}: a source of "
                    f"{len(self.classes)} classes must number them from 0 to {len(self.classes) - 1}."
                )
