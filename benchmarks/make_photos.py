"""Write JPEG files of 500 x 400 pixels in class folders: noise with the spectrum of photographs, gradients and edges.

python benchmarks/make_photos.py images --count 10000

A few hundred images are drawn and encoded; the files repeat them, each with a comment that makes its bytes unique, so
that 100,000 files take minutes.
"""

from argparse import ArgumentParser
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT, CLASSES = 500, 400, 5
START_OF_IMAGE, COMMENT = b"\xff\xd8", b"\xff\xfe"


def photo(random: np.random.Generator) -> Image.Image:
    """Draw an image."""
    frequency = np.hypot(np.fft.fftfreq(HEIGHT)[:, None], np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1
    # The amplitude of photographs falls with the frequency; most of their contrast is common to the channels.
    noise = np.fft.rfft2(random.standard_normal((4, HEIGHT, WIDTH))) / frequency**1.5
    noise[:, 0, 0] = 0
    common, *own = np.fft.irfft2(noise, s=(HEIGHT, WIDTH))
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([common / common.std() + channel / channel.std() / 2 for channel in own], axis=-1)
    pixels += np.outer(columns / WIDTH - 0.5, random.normal(0, 1, 3)).reshape(pixels.shape)
    for _ in range(12):
        x, y, radius = random.uniform(0, WIDTH), random.uniform(0, HEIGHT), random.uniform(15, 100)
        pixels[(columns - x) ** 2 + (rows - y) ** 2 < radius**2] += random.normal(0, 1, 3)
    return Image.fromarray((128 + 45 * pixels).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image) -> bytes:
    """Encode an image as JPEG."""
    content = BytesIO()
    image.save(content, "JPEG", quality=90)
    return content.getvalue()


def with_comment(content: bytes, text: bytes) -> bytes:
    """Insert a comment into a JPEG file."""
    length = (len(text) + 2).to_bytes(2, "big")
    return START_OF_IMAGE + COMMENT + length + text + content[len(START_OF_IMAGE) :]


arguments = ArgumentParser(description=__doc__)
arguments.add_argument("folder", type=Path)
arguments.add_argument("--count", type=int, required=True, help="number of files")
arguments.add_argument("--distinct", type=int, default=100, help="number of images that are drawn")
options = arguments.parse_args()
random = np.random.default_rng(0)
contents = [encoded(photo(random)) for _ in range(min(options.count, options.distinct))]
for label in range(CLASSES):
    (options.folder / f"class{label}").mkdir(parents=True)
for number in range(options.count):
    path = options.folder / f"class{number % CLASSES}" / f"{number:06}.jpg"
    path.write_bytes(with_comment(contents[number % len(contents)], str(number).encode()))
print(f"{sum(map(len, contents)) / len(contents) / 1000:.0f} kB per file")
