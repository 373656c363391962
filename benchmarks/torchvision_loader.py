"""The tutorial's data loader: PIL images as in torchvision's CIFAR10, ToTensor, Normalize, two workers."""

from pathlib import Path

import torch
from common import HALF, train_images
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

WORKERS = 2


class Images(Dataset[tuple[Tensor, int]]):
    """Torchvision's CIFAR10 without unpickling, which is not measured."""

    def __init__(self, folder: Path) -> None:
        images, labels = train_images(folder)
        self.data, self.targets = images, labels.tolist()
        normalize = transforms.Normalize((HALF, HALF, HALF), (HALF, HALF, HALF))
        self.transform = transforms.Compose([transforms.ToTensor(), normalize])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.transform(Image.fromarray(self.data[index]))
        return image, self.targets[index]


def build_loader(folder: Path, batch_size: int) -> "DataLoader[tuple[Tensor, int]]":
    """Build the tutorial's DataLoader."""
    torch.manual_seed(0)
    return DataLoader(Images(folder), batch_size=batch_size, shuffle=True, num_workers=WORKERS)
