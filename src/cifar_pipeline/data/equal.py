"""Pictures that stand in two parts of a data set: what a network has learnt by heart measures nothing."""

from collections.abc import Mapping
from hashlib import blake2b
from itertools import combinations

from cifar_pipeline.data.official import Images
from cifar_pipeline.data.pieces import pieces

# 16 bytes for each picture: of a thousand million, no two are taken for equal by chance.
DIGEST_BYTES = 16


def equal_pictures(parts: Mapping[str, Images]) -> list[tuple[str, int, str, int]]:
    """For each picture of a part that is one of an earlier part too: (earlier part, index, part, index).

    Compared is the hash of the pixels, `[H, W, C] uint8`.
    """
    digests = {part: list(_digests(images)) for part, images in parts.items()}
    found = []
    for earlier, later in combinations(parts, 2):
        first = {digest: index for index, digest in reversed(list(enumerate(digests[earlier])))}
        found += [
            (earlier, first[digest], later, index) for index, digest in enumerate(digests[later]) if digest in first
        ]
    return found


def _digests(images: Images) -> list[bytes]:
    found = []
    for piece in pieces(images):
        found += [blake2b(image.tobytes(), digest_size=DIGEST_BYTES).digest() for image in images[piece]]
    return found
