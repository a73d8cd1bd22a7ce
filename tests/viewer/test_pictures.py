"""plr_server/viewer/pictures.py: PNGs that read as what was rendered, bounded in every way."""

from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest

from plr_server.viewer import pictures
from plr_server.viewer.functions import OfLevel
from plr_server.viewer.pictures import MAX_BYTES, MAX_PICTURES, MAX_SIDE, Pictures, encoded, thumbnail

RNG = np.random.default_rng(0)
MODULE = """
import numpy as np
asked = []
def plain(level):
    asked.append(level)
    return np.full((4, 6, 3), level % 256, dtype=np.uint8)
def broken(level):
    raise KeyError(level)
"""


def decoded(png):
    """The RGB array of a PNG as `encoded` writes it; every checksum is checked."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    at, chunks = 8, {}
    while at < len(png):
        length, kind = struct.unpack_from(">I4s", png, at)
        body = png[at + 8 : at + 8 + length]
        assert struct.unpack_from(">I", png, at + 8 + length)[0] == zlib.crc32(kind + body)
        chunks[kind] = body
        at += 12 + length
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    width, height, *rest = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert rest == [8, 2, 0, 0, 0]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


def test_a_png_reads_as_what_was_written():
    for shape in ((1, 1, 3), (7, 13, 3), (88, 5, 3)):
        picture = RNG.integers(0, 256, shape, dtype=np.uint8)
        assert (decoded(encoded(picture)) == picture).all()


@pytest.mark.parametrize("shape", [(64, 64, 3), (200, 200, 3), (89, 40, 3), (10, 1000, 3), (3000, 1, 3)])
@pytest.mark.parametrize("noise", [True, False])
def test_a_thumbnail_is_small_and_keeps_the_proportions(shape, noise):
    rendered = RNG.integers(0, 256, shape, dtype=np.uint8) if noise else np.full(shape, 77, np.uint8)
    png = thumbnail(rendered)
    height, width, _ = decoded(png).shape
    assert len(png) <= MAX_BYTES
    assert 1 <= min(height, width) <= max(height, width) <= MAX_SIDE
    assert max(height, width) >= 40 or max(shape) < 40
    assert height / width == pytest.approx(shape[0] / shape[1], rel=0.05) or 1 in (height, width)
    assert decoded(png).mean() == pytest.approx(rendered.mean(), abs=3.0)


def test_a_pixel_is_the_mean_of_what_it_stands_for():
    rendered = RNG.integers(0, 4, (88, 264, 3), dtype=np.uint8) * 64
    shrunk = decoded(thumbnail(rendered)).astype(float)
    blocks = rendered[:87].reshape(29, 3, 88, 3, 3).mean(axis=(1, 3))
    assert np.abs(shrunk[:28] - blocks[:28]).max() <= 0.5


def test_floats_and_wide_ints_are_taken():
    assert (decoded(thumbnail(np.full((2, 2, 3), 0.5))) == 128).all()
    assert (decoded(thumbnail(np.full((2, 2, 3), 300))) == 255).all()


@pytest.mark.parametrize("wrong", [np.zeros((4, 4)), np.zeros((4, 4, 4)), np.zeros((0, 4, 3)), None, [["a"]], "text"])
def test_what_is_no_picture_is_refused(wrong):
    with pytest.raises(ValueError, match="expected an RGB array"):
        thumbnail(wrong)


@pytest.fixture
def named(importable):
    importable("drawing", MODULE)
    return lambda name: OfLevel("render", f"drawing:{name}")


def test_the_least_recently_shown_go_first(named, monkeypatch):
    import drawing  # noqa: PLC0415  made by the fixture

    monkeypatch.setattr(pictures, "MAX_PICTURES", 3)
    kept = Pictures(named("plain"))
    for level in (1, 2, 3, 1, 4, 1, 2):
        assert (decoded(kept.png(level, lambda level=level: level)) == level).all()
    assert drawing.asked == [1, 2, 3, 4, 2]
    assert [level for level in range(6) if kept.kept(level) is not None] == [1, 2, 4]
    assert MAX_PICTURES == 256


def test_a_level_that_is_gone_or_cannot_be_drawn_has_none(named):
    assert Pictures(named("plain")).png(1, lambda: None) is None
    broken = Pictures(named("broken"))
    assert broken.png(1, lambda: 1) is None
    assert broken.kept(1) is None
