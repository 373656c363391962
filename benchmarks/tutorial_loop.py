"""Baseline: the loop of PyTorch's tutorial "Training a Classifier", line by line.

python benchmarks/tutorial_loop.py --steps 1000
"""

import time

import torch
from common import CLASSES, LR, MOMENTUM, WARM_UP, parser, print_step_result, since_start
from models import LeNet
from torch import nn
from torchvision_loader import build_loader

options = parser(__doc__).parse_args()
trainloader = build_loader(options.data, options.batch_size)
net = LeNet(channels=3, size=32, classes=CLASSES)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(net.parameters(), lr=LR, momentum=MOMENTUM)

start_up = since_start()
running_loss = 0.0
start = time.perf_counter()
for step, (inputs, labels) in enumerate(trainloader):
    if step == WARM_UP:
        start = time.perf_counter()
    if step == WARM_UP + options.steps:
        break
    optimizer.zero_grad()
    outputs = net(inputs)
    loss = criterion(outputs, labels)
    loss.backward()
    optimizer.step()
    running_loss += loss.item()
print_step_result(start_up, time.perf_counter() - start, options.steps, options.batch_size)
