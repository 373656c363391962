"""Writes images of the test part as PNG files, for `python src/predict.py`.

python benchmarks/make_image_files.py images --count 10000
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from PIL import Image

arguments = ArgumentParser(description=__doc__)
arguments.add_argument("folder", type=Path)
arguments.add_argument("--count", type=int, required=True, help="number of files; the test images are repeated")
arguments.add_argument("--data", type=Path, default=Path("data/processed"))
options = arguments.parse_args()
images = np.load(options.data / "test" / "images.npy", mmap_mode="r")
options.folder.mkdir(parents=True)
for number in range(options.count):
    Image.fromarray(images[number % len(images)]).save(options.folder / f"{number:06}.png")
