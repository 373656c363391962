"""Baseline: a script with `hydra.main` that trains LeNet with a plain loop, as one usually starts a sweep by `-m`.

    python benchmarks/plain_hydra.py -m seed=1,2,3 steps=600 hydra/launcher=joblib

Each job writes its weights and the seconds of its optimizer steps to its folder. Nothing is tracked, checked, exported
or taken up.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig


@dataclass
class Config:
    """Configuration of a job."""

    data: str = "data/processed"
    seed: int = 0
    epochs: int = 2
    steps: int = 300  # in an epoch
    batch_size: int = 4
    lr: float = 0.001
    momentum: float = 0.9


ConfigStore.instance().store("config", Config)


@hydra.main(config_path=None, config_name="config", version_base="1.3")
def train(config: Any) -> float:
    """Return the loss on a batch of the validation split."""
    import numpy as np
    import torch
    from torch import nn

    from cifar_pipeline.models.lenet import LeNet

    def split(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = (np.load(Path(config.data) / name / f"{part}.npy") for part in ("images", "labels"))
        return torch.from_numpy(images), torch.from_numpy(labels)

    def loss_of(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return criterion(net(((images.float() / 255 - 0.5) / 0.5).permute(0, 3, 1, 2)), labels)

    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    (images, labels), held_out = split("train"), split("val")
    net = LeNet(channels=images.shape[3], size=images.shape[1], classes=10).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=config.lr, momentum=config.momentum)
    criterion = nn.CrossEntropyLoss()
    folder, seconds, value = Path(HydraConfig.get().runtime.output_dir), 0.0, 0.0
    for epoch in range(1, config.epochs + 1):
        net.train()
        order, start = torch.randperm(len(images)), time.perf_counter()
        for step in range(config.steps):
            index = order[step * config.batch_size % len(images) :][: config.batch_size]
            optimizer.zero_grad()
            loss_of(images[index], labels[index]).backward()
            optimizer.step()
        seconds += time.perf_counter() - start
        net.eval()
        with torch.inference_mode():
            value = loss_of(*(tensor[:1000] for tensor in held_out)).item()
        print(f"[{HydraConfig.get().job.num}] epoch {epoch}/{config.epochs}  val/loss {value:.4f}", flush=True)
    torch.save(net.state_dict(), folder / "model.pt")
    (folder / "timing.json").write_text(json.dumps({"seconds": seconds}), encoding="utf-8")
    return value


if __name__ == "__main__":
    os.environ["HYDRA_FULL_ERROR"] = "1"
    train()
