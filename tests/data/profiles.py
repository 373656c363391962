"""ICC profiles written byte by byte, so that a test knows what they say."""

import struct

D50 = (0.9642, 1.0, 0.8249)
# Primaries of red, green and blue adapted to D50, as each profile publishes them.
ADOBE_RGB = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
DISPLAY_P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
GAMMA = 2.2


def _xyz(values: tuple[float, ...]) -> bytes:
    return b"XYZ \0\0\0\0" + b"".join(struct.pack(">i", round(value * 65536)) for value in values)


def _curve(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256)) + b"\0\0"


def _profile(space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ") -> bytes:
    name = b"made by a test\0"
    text = b"text\0\0\0\0" + name
    described = b"desc\0\0\0\0" + struct.pack(">I", len(name)) + name + bytes(78)
    tags = {b"desc": described, b"cprt": text, b"wtpt": _xyz(D50), **tags}
    table, content, place = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for key, value in tags.items():
        table += key + struct.pack(">II", place + len(content), len(value))
        content += value + bytes(-len(value) % 4)
    size = place + len(content)
    header = struct.pack(">I4sI4s4s4s", size, b"test", 0x02400000, b"mntr", space, connection)
    header += struct.pack(">6H4s", 2024, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    header += b"".join(struct.pack(">i", round(value * 65536)) for value in D50)
    return header.ljust(128, b"\0") + table + content


def rgb_profile(primaries: tuple[tuple[float, ...], ...], gamma: float = GAMMA) -> bytes:
    """A profile of these primaries, each channel with the same gamma."""
    columns = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), map(_xyz, primaries), strict=True))
    return _profile(b"RGB ", columns | dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), _curve(gamma)))


def grey_profile(gamma: float) -> bytes:
    return _profile(b"GRAY", {b"kTRC": _curve(gamma)})


def cmyk_profile(first_ink: tuple[float, float, float]) -> bytes:
    """A profile in which the first ink alone has this colour of CIELAB, no ink is white, and all else is black."""

    def lab(lightness: float, a: float, b: float) -> bytes:
        return bytes([round(lightness * 2.55), round(a + 128), round(b + 128)])

    corners = [lab(100, 0, 0)] + 15 * [lab(0, 0, 0)]
    corners[0b1000] = lab(*first_ink)
    fingerprint = b"".join(struct.pack(">i", 65536 * (place % 4 == 0)) for place in range(9))
    tables = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + fingerprint + 4 * tables + b"".join(corners) + 3 * tables
    return _profile(b"CMYK", {b"A2B0": table}, b"Lab ")
