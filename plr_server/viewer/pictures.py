"""Pictures of levels: small PNGs of what a function of the user's renders, the last ones that were shown.

Used by collect. Bounded: at most 256 pictures of at most 16 kB each. The function runs here, in the viewer's process,
one level at a time.
"""

from __future__ import annotations

import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plr_server.viewer.functions import OfLevel

MAX_PICTURES = 256  # the least recently shown goes first
MAX_BYTES = 16_000
MAX_SIDE = 88  # pixels

Picture = NDArray[np.uint8]  # (height, width, 3)


class Pictures:
    """Pictures by key.

    Args:
        function: from a level, its id or its payload, to an RGB array (height, width, 3), of uint8 or of floats 0 to 1.
    """

    def __init__(self, function: OfLevel) -> None:
        self._function = function
        self._shown: OrderedDict[Hashable, bytes] = OrderedDict()  # the least recently shown first
        self._lock = threading.Lock()

    def png(self, key: Hashable, given: Callable[[], Any]) -> bytes | None:
        """Returns the picture of a level, drawn if it is not kept; None where that fails.

        Args:
            key: of the level.
            given: returns what the function is to be given; None where the level is gone.
        """
        with self._lock:  # an env that renders is used by one at a time
            png = self._shown.pop(key, None)
            if png is None:
                level = given()
                png = None if level is None else self._function(level, thumbnail)
            if png is None:
                return None
            self._shown[key] = png
            if len(self._shown) > MAX_PICTURES:
                self._shown.popitem(last=False)
            return png

    def kept(self, key: Hashable) -> bytes | None:
        """Returns the picture of a level if it is kept."""
        return self._shown.get(key)


def thumbnail(rendered: Any) -> bytes:
    """Returns a PNG of at most 88 pixels a side and 16 kB, of an RGB array.

    Raises:
        ValueError: it is no such array.
    """
    picture = _rgb(rendered)
    side = MAX_SIDE
    while len(png := encoded(_shrunk(picture, side))) > MAX_BYTES:
        side //= 2
    return png


def encoded(picture: Picture) -> bytes:
    """Returns the PNG of an RGB array: 8 bits a channel, no filter, one chunk of data.

    Source: Portable Network Graphics, third edition, sections 5 and 11.
    """
    height, width, _ = picture.shape
    lines = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # the first byte says that a line is not filtered
    lines[:, 1:] = picture.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(lines.tobytes(), 9)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", data), (b"IEND", b""))
    )


def _rgb(rendered: Any) -> Picture:
    picture = np.asarray(rendered)
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:  # noqa: PLR2004  height, width, RGB
        raise ValueError(f"expected an RGB array of shape (height, width, 3), got shape {picture.shape}")
    if picture.dtype.kind == "f":
        picture = np.rint(255.0 * picture.clip(0.0, 1.0))
    if picture.dtype.kind not in "fiu":
        raise ValueError(f"expected an RGB array of uint8, or of floats from 0 to 1, got {picture.dtype}")
    return picture.clip(0, 255).astype(np.uint8)


def _shrunk(picture: Picture, side: int) -> Picture:
    """Returns a picture that fits into so many pixels a side, each the mean of what it stands for."""
    height, width, _ = picture.shape
    scale = max(height, width) / side
    if scale <= 1.0:
        return picture
    sums = picture.astype(np.float64)
    for axis, length in enumerate((height, width)):
        begin = (np.arange(max(1, int(length / scale))) * scale).astype(np.int64)
        counts = np.diff(begin, append=length).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        sums = np.add.reduceat(sums, begin, axis=axis) / counts
    return np.rint(sums).astype(np.uint8)
