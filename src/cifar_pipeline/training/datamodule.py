"""The processed data set as Lightning takes it: batches gathered in memory, no worker processes."""

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor

from cifar_pipeline.data.dataset import Dataset
from cifar_pipeline.data.loader import Augment, ChunkedLoader, TensorLoader
from cifar_pipeline.utils.errors import UserError

# A part that takes at most one such share of a GPU's free memory lives there: a batch is then gathered without a copy.
GPU_MEMORY_DIVISOR = 4


class ImageDataModule(LightningDataModule):
    """Batches of raw images `[N, H, W, C] uint8` and labels `[N] int64` of the train and val parts.

    Args:
        dataset: the processed set; its arrays stay memory-mapped.
        batch_size: images per batch of training.
        eval_batch_size: images per batch of validation.
        augment: what is done to the training images, and to them only.
        seed: what the order of the training images and their augmentation follow from.
        chunk: how many batches of training are handed out at once, `[S, N, H, W, C]` (0: each by itself).

    Raises:
        Refusal: a batch is larger than the train part.
    """

    def __init__(
        self, dataset: Dataset, batch_size: int, eval_batch_size: int, augment: Augment, seed: int, chunk: int = 0
    ) -> None:
        super().__init__()
        size = dataset.sizes["train"]
        if batch_size > size:
            raise UserError(
                f"trainer.batch_size={batch_size} is larger than the {size} training images of {dataset.title}."
            )
        self.dataset, self.batch_size, self.eval_batch_size = dataset, batch_size, eval_batch_size
        self.augment, self.seed, self.chunk = augment, seed, chunk

    @property
    def has_val(self) -> bool:
        """Whether anything was held back to choose by."""
        return self.dataset.sizes["val"] > 0

    @property
    def train_batches(self) -> int:
        """Batches per epoch."""
        return -(-self.dataset.sizes["train"] // self.batch_size)

    def train_dataloader(self) -> TensorLoader | ChunkedLoader:
        images, labels = self._part("train")
        rank, processes = self._share()
        batches = TensorLoader(
            images,
            labels,
            self.batch_size,
            seed=self.seed,
            shuffle=True,
            augment=self.augment,
            rank=rank,
            world_size=processes,
        )
        return ChunkedLoader(batches, self.chunk) if self.chunk else batches

    def val_dataloader(self) -> TensorLoader | list[TensorLoader]:
        if not self.has_val:
            return []
        images, labels = self._part("val")
        rank, processes = self._share()
        return TensorLoader(
            images, labels, self.eval_batch_size, seed=self.seed, shuffle=False, rank=rank, world_size=processes
        )

    def _share(self) -> tuple[int, int]:
        """Which process this is, of how many."""
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _part(self, name: str) -> tuple[Tensor, Tensor]:
        images, labels = map(torch.from_numpy, self.dataset.split(name))
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if device.type == "cuda" and images.nbytes < torch.cuda.mem_get_info(device)[0] // GPU_MEMORY_DIVISOR:
            return images.to(device), labels.to(device)
        return images, labels
