"""Lightning data module over the processed dataset: batches gathered in memory, without worker processes."""

from math import prod

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.loader import ChunkedLoader, TensorLoader
from cifar_pipeline.data.transforms import Augmentation
from cifar_pipeline.training.features import FeatureCache, choose_variant
from cifar_pipeline.utils.errors import UserError

# A split is moved to the GPU if it takes less than this fraction (1 / divisor) of its free memory.
GPU_MEMORY_DIVISOR = 4


class ImageDataModule(LightningDataModule):
    """Batches of raw images `[N, H, W, C] uint8` and labels `[N] int64` of the train and val splits.

    Args:
        dataset: the processed dataset; its arrays stay memory-mapped.
        batch_size: images per batch of training.
        eval_batch_size: images per batch of validation.
        augmentation: of the training images.
        seed: seeds the order of the training images and their augmentation.
        chunk: number of training batches stacked into one, `[S, N, H, W, C]` (0: none are).
        shuffle: whether the order of the training images changes in each epoch.
        features: features to load in place of the images, `[B, ...] float32`; None: the images.

    Raises:
        UserError: a batch is larger than the train split.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        eval_batch_size: int,
        augmentation: Augmentation,
        seed: int,
        chunk: int = 0,
        shuffle: bool = True,
        features: FeatureCache | None = None,
    ) -> None:
        super().__init__()
        size = dataset.sizes["train"]
        if batch_size > size:
            raise UserError(
                f"trainer.batch_size={batch_size} is larger than the {size} training images of {dataset.title}."
            )
        self.dataset, self.batch_size, self.eval_batch_size = dataset, batch_size, eval_batch_size
        self.augmentation, self.seed, self.chunk, self.shuffle = augmentation, seed, chunk, shuffle
        self.features = features

    @property
    def has_val(self) -> bool:
        """Whether there is a validation split."""
        return self.dataset.sizes["val"] > 0

    @property
    def batches_per_epoch(self) -> int:
        """Training batches per epoch."""
        return -(-self.dataset.sizes["train"] // self.batch_size)

    def train_dataloader(self) -> TensorLoader | ChunkedLoader:
        images, labels = self._split("train")
        rank, world_size = self._rank_and_world_size()
        batches = TensorLoader(
            images,
            labels,
            self.batch_size,
            seed=self.seed,
            shuffle=self.shuffle,
            augmentation=choose_variant(self.augmentation)
            if self.features and self.features.is_mirrored
            else self.augmentation,
            row_bytes=prod(self.dataset.shape),
            rank=rank,
            world_size=world_size,
        )
        return ChunkedLoader(batches, self.chunk) if self.chunk else batches

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        if not self.has_val:
            return []
        images, labels = self._split("val")
        rank, world_size = self._rank_and_world_size()
        return TensorLoader(
            images, labels, self.eval_batch_size, seed=self.seed, shuffle=False, rank=rank, world_size=world_size
        )

    def _rank_and_world_size(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _split(self, name: str) -> tuple[Tensor, Tensor]:
        images, labels = map(torch.from_numpy, self.dataset.split(name))
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if self.features is not None:
            images = self.features.open(name, device)
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] // GPU_MEMORY_DIVISOR:
            return images.to(device), labels.to(device)
        return images, labels
