"""What accuracy the tutorial's recipe reaches in a plain loop, on the images that the pipeline trains on.

    python benchmarks/tutorial_accuracy.py 10 11 12        # seeds; some three minutes each on one core

Nothing of the pipeline is used but data/processed: the network and the loop are written out as the tutorial has them.
"""

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


def part(name: str) -> tuple[Tensor, Tensor]:
    """Images `[N, 3, 32, 32] float` in [-1, 1] and labels `[N]`."""
    folder = Path("data/processed") / name
    images = torch.from_numpy(np.load(folder / "images.npy")).permute(0, 3, 1, 2).float()
    return (images / 255 - 0.5) / 0.5, torch.from_numpy(np.load(folder / "labels.npy"))


def accuracy(seed: int) -> float:
    """The test accuracy after the last epoch."""
    images, labels = part("train")
    torch.manual_seed(seed)
    net, loss = Net(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            loss(net(images[index]), labels[index]).backward()
            optimizer.step()
    images, labels = part("test")
    with torch.no_grad():
        predictions = torch.cat([net(batch).argmax(1) for batch in images.split(1000)])
    return (predictions == labels).float().mean().item()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for given in sys.argv[1:]:
        print(f"seed {given}: {accuracy(int(given)):.2%} of the test images", flush=True)
