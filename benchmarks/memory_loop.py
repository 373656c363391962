"""Side: a loop written by hand over tensors in memory, channels_last; nothing is in its way but PyTorch itself.

    python benchmarks/memory_loop.py --steps 176 --batch-size 256

The pixels are normalised floats before it starts, and no loss is read before it ends.
"""

import os
import time

import networks
import torch
from side import CLASSES, HALF, LR, MOMENTUM, WARM_UP, answer_steps, parser, pictures, since_start
from torch import nn

arguments = parser(__doc__)
arguments.add_argument("--network", default="LeNet", choices=networks.__all__)
arguments.add_argument("--bf16", action="store_true", help="products in bfloat16, by autocast")
options = arguments.parse_args()
torch.set_num_threads(len(os.sched_getaffinity(0)))
torch.manual_seed(0)

raw, truth = pictures(options.data)
images, labels = (torch.from_numpy(raw).float() / 255 - HALF) / HALF, torch.from_numpy(truth)
_, size, _, channels = images.shape
net = getattr(networks, options.network)(channels=channels, size=size, classes=CLASSES)
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
answer_steps(start_up, time.perf_counter() - start, options.steps, options.batch_size)
