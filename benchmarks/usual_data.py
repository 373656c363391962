"""The data as the tutorial has it: PIL images out of torchvision's CIFAR10, ToTensor, Normalize, two workers."""

from pathlib import Path

import torch
from PIL import Image
from side import HALF, pictures
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

WORKERS = 2


class Images(Dataset[tuple[Tensor, int]]):
    """What torchvision's CIFAR10 does with its arrays; without its unpickling, which is not measured."""

    def __init__(self, folder: Path) -> None:
        images, labels = pictures(folder)
        self.data, self.targets = images, labels.tolist()
        normalise = transforms.Normalize((HALF, HALF, HALF), (HALF, HALF, HALF))
        self.transform = transforms.Compose([transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.transform(Image.fromarray(self.data[index]))
        return image, self.targets[index]


def usual_loader(folder: Path, batch_size: int) -> "DataLoader[tuple[Tensor, int]]":
    """The tutorial's DataLoader."""
    torch.manual_seed(0)
    return DataLoader(Images(folder), batch_size=batch_size, shuffle=True, num_workers=WORKERS)
