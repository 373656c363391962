"""Measure the accuracy of the tutorial's recipe in a plain loop, on the pipeline's training images.

    python benchmarks/tutorial_accuracy.py 10 11 12        # seeds; some three minutes each on one core

Uses nothing of the pipeline but data/processed; network and loop are written as in the tutorial.
"""

import environment  # noqa: F401

# isort: split

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

EPOCHS, BATCH = 10, 4


class Net(nn.Module):
    """The tutorial's network."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = F.max_pool2d(F.relu(self.conv1(images)), 2)
        features = F.max_pool2d(F.relu(self.conv2(features)), 2).flatten(1)
        logits: Tensor = self.fc3(F.relu(self.fc2(F.relu(self.fc1(features)))))
        return logits


def load_split(name: str) -> tuple[Tensor, Tensor]:
    """Load images `[N, 3, 32, 32] float` in [-1, 1] and labels `[N]`."""
    folder = Path("data/processed") / name
    images = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2).float()
    return (images / 255 - 0.5) / 0.5, torch.from_numpy(np.load(folder / "labels.npy"))


def accuracy(seed: int) -> float:
    """Train and return the test accuracy after the last epoch."""
    images, labels = load_split("train")
    torch.manual_seed(seed)
    net, loss = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss(net(images[index]), labels[index]).backward()
            optimizer.step()
    images, labels = load_split("test")
    with torch.no_grad():
        predictions = torch.cat([net(batch).argmax(1) for batch in images.split(1000)])
    return (predictions == labels).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for seed in sys.argv[1:]:
        print(f"seed {seed}: {accuracy(int(seed)):.2%} of the test images", flush=True)
