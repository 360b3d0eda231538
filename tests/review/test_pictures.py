"""Samples as browsers get them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from tests.record_cases import fingerprint
from verifix.errors import DataError
from verifix.io.data.records import Header
from verifix.review.pictures import open_shown


@pytest.fixture
def shown(tmp_path):
    """Returns how an image is shown, once it is saved in a data set."""

    def show(image: Image.Image, name: str = "a.png", small: bool = False, **settings):
        folder = tmp_path / "photos" / "cat"
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / name, **settings)
        header = Header(
            data=str(tmp_path / "photos"), classes=("cat",), length=1, fingerprint=fingerprint([f"cat/{name}"], [0]),
            strategy="random", seed=0, options={"classes": ["cat"], "labels": True, "texts": False},
        )  # fmt: skip
        pictures = open_shown(header, "queue.jsonl")
        assert len(pictures) == 1
        found = pictures.small(0) if small else pictures.shown(0)
        return found.kind, Image.open(io.BytesIO(found.content))

    return show


def test_small_images_are_sent_as_they_are(shown):
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    kind, image = shown(Image.fromarray(pixels))
    assert kind == "image/png"
    assert np.array_equal(np.array(image), pixels)


def test_large_images_are_scaled_down(shown):
    kind, image = shown(Image.new("RGB", (3000, 1000), "red"))
    assert (kind, image.format, image.size) == ("image/jpeg", "JPEG", (2048, 683))


def test_pictures_of_the_grid_are_small(shown):
    kind, image = shown(Image.new("RGB", (900, 600), "red"), small=True)
    assert (kind, image.size) == ("image/png", (256, 171))


def test_images_are_turned_upright(shown):
    image = Image.new("RGB", (40, 20), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # a quarter turn
    _, found = shown(image, "a.jpg", exif=exif)
    assert found.size == (20, 40)


def test_what_is_transparent_is_white(shown):
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((1, 1), (0, 0, 255, 255))
    _, found = shown(image)
    assert found.mode == "RGB"
    assert found.getpixel((0, 0)) == (255, 255, 255)
    assert found.getpixel((1, 1)) == (0, 0, 255)


def test_deep_images_keep_their_greys(shown):
    image = Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16))
    _, found = shown(image)
    assert np.array(found).tolist() == [[0, 100, 255]]


def test_a_sample_that_cannot_be_read_is_named(shown, tmp_path):
    shown(Image.new("RGB", (4, 4)))
    (tmp_path / "photos" / "cat" / "a.png").write_bytes(b"no image")
    header = Header(
        data=str(tmp_path / "photos"), classes=("cat",), length=1, fingerprint=fingerprint(["cat/a.png"], [0]),
        strategy="random", seed=0, options={"classes": ["cat"], "labels": True, "texts": False},
    )  # fmt: skip
    with pytest.raises(DataError, match=r"a\.png is not in a known image format"):
        open_shown(header, "queue.jsonl").shown(0)
