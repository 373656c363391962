"""The usual way to read image files: torchvision's ImageFolder, Resize and CenterCrop, and a DataLoader."""

from argparse import ArgumentParser
from pathlib import Path

from common import print_result
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

WORKERS = 2

arguments = ArgumentParser(description=__doc__)
arguments.add_argument("folder", type=Path)
arguments.add_argument("--size", type=int, required=True, help="pixels of height and width")
options = arguments.parse_args()
# Bytes as `preprocess` writes them, without the conversion to floating point that a training adds.
transform = v2.Compose([v2.Resize(options.size), v2.CenterCrop(options.size), v2.PILToTensor()])
loader = DataLoader(ImageFolder(options.folder, transform), batch_size=64, num_workers=WORKERS)
print_result(images=sum(len(labels) for _, labels in loader))
