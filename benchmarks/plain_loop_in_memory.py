"""Baseline: a plain PyTorch training loop over tensors in memory, channels_last.

    python benchmarks/plain_loop_in_memory.py --steps 176 --batch-size 256

The pixels are normalized to floats beforehand, and the loss is read once, at the end.
"""

import os
import time

import models
import torch
from common import CLASSES, HALF, LR, MOMENTUM, WARM_UP, parser, print_step_result, since_start, train_images
from torch import nn

arguments = parser(__doc__)
arguments.add_argument("--network", default="LeNet", choices=models.__all__)
arguments.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
arguments.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="default: one per core")
options = arguments.parse_args()
torch.set_num_threads(options.threads)
torch.manual_seed(0)

raw, targets = train_images(options.data)
images, labels = (torch.from_numpy(raw).float() / 255 - HALF) / HALF, torch.from_numpy(targets)
_, size, _, channels = images.shape
net = getattr(models, options.network)(channels=channels, size=size, classes=CLASSES)
net = net.to(memory_format=torch.channels_last)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)
batches = len(images) // options.batch_size
warm_up = min(WARM_UP, options.steps)

start_up = since_start()
total = torch.zeros(())
start = time.perf_counter()
for step in range(warm_up + options.steps):
    if step == warm_up:
        start = time.perf_counter()
    if step % batches == 0:
        order = torch.randperm(len(images))
    index = order[step % batches * options.batch_size :][: options.batch_size]
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=options.bf16):
        loss = criterion(net(images[index].permute(0, 3, 1, 2)), labels[index])
    loss.backward()
    optimizer.step()
    total += loss.detach()
total.item()
print_step_result(start_up, time.perf_counter() - start, options.steps, options.batch_size)
