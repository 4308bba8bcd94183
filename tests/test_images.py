"""Initial images: files of every kind, and what becomes of their shape."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from sgool.__main__ import main
from sgool.errors import SgoolError
from sgool.images import fit, read_image, read_mask

ORIENTATION = 0x0112


def read(path) -> np.ndarray:
    """The file as [H, W, 3], RGB in [0, 255]."""
    return read_image(path)[0].permute(1, 2, 0).numpy() * 255


def picture(mode: str) -> Image.Image:
    """Twelve by eight pixels, no two of its four corners alike."""
    image = Image.new("RGBA", (12, 8), (40, 90, 160, 255))
    image.paste((220, 30, 30, 255), (0, 0, 6, 4))
    image.paste((20, 200, 60, 128), (6, 4, 12, 8))
    image.paste((250, 240, 20, 0), (6, 0, 12, 4))
    return image.convert(mode)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("suffix", "mode"), [("jpg", "RGB"), ("jpg", "L"), ("png", "RGB"), ("png", "RGBA"), ("png", "LA")]
)
def test_an_image_is_turned_as_its_exif_says(suffix, mode, orientation, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = tmp_path / f"in.{suffix}"
    picture(mode).save(path, exif=exif, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    with Image.open(path) as opened:
        upright = ImageOps.exif_transpose(opened).convert("RGBA")
    page = Image.new("RGBA", upright.size, "white")
    page.alpha_composite(upright)
    expected = np.asarray(page.convert("RGB"), float)
    assert read(path).shape == expected.shape == ((8, 12, 3) if orientation < 5 else (12, 8, 3))
    assert np.abs(read(path) - expected).max() <= (3 if suffix == "jpg" else 1.01)


@pytest.mark.parametrize("orientation", [0, 9, b"Exif\0\0nonsense"])
def test_an_orientation_that_is_none_turns_nothing(orientation, tmp_path):
    exif = Image.Exif()
    if isinstance(orientation, int):
        exif[ORIENTATION] = orientation
    else:
        exif = orientation
    picture("RGB").save(tmp_path / "in.png", exif=exif)
    assert np.allclose(read(tmp_path / "in.png"), np.asarray(picture("RGB")), atol=0.01)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_every_kind_of_png_is_read(mode, tmp_path):
    made = picture("RGB").convert(mode)
    made.save(tmp_path / "in.png")
    assert np.allclose(read(tmp_path / "in.png"), np.asarray(made.convert("RGB")), atol=0.01)


def test_sixteen_bits_keep_their_precision(tmp_path):
    deep = np.array([[0, 257 * 100, 65535]], np.uint16)
    cv2.imwrite(str(tmp_path / "gray.png"), deep)
    cv2.imwrite(str(tmp_path / "color.png"), np.stack([deep, deep // 2, deep // 4], -1))
    assert np.allclose(read(tmp_path / "gray.png")[0, :, 1], [0, 100, 255], atol=1e-3)
    assert np.allclose(read(tmp_path / "color.png")[0, 1], [25, 50, 100], atol=1e-2)  # it holds blue, green, red


def test_a_palette_with_a_transparent_color(tmp_path):
    made = picture("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    clear = made.getpixel((0, 0))
    made.save(tmp_path / "in.png", transparency=clear)
    image = read(tmp_path / "in.png")
    assert np.allclose(image[0, 0], 255) and np.allclose(image[7, 0], (40, 90, 160), atol=1)


def test_what_is_transparent_is_white(tmp_path):
    made = np.zeros((2, 2, 4), np.uint8)
    made[0, 0] = 200, 0, 100, 255  # blue, green, red
    made[0, 1] = 200, 0, 100, 51
    made[1, 0] = 255, 0, 255, 0
    expected = [[[100, 0, 200], [224, 204, 244]], [[255, 255, 255], [255, 255, 255]]]
    cv2.imwrite(str(tmp_path / "in.png"), made)
    cv2.imwrite(str(tmp_path / "deep.png"), made.astype(np.uint16) * 257)
    for name in ("in.png", "deep.png"):
        assert np.allclose(read(tmp_path / name), expected, atol=0.01)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "float"])
def test_a_file_that_is_no_picture(content, tmp_path):
    path = tmp_path / "in.tiff"
    if content == "float":
        Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(path)  # OpenCV itself rounds floats in some versions
    else:
        path.write_bytes(content)
    with pytest.raises(SgoolError, match=r"in\.tiff is not a picture that can be read\.$"):
        read_image(path)


def test_a_folder_is_no_picture(tmp_path):
    with pytest.raises(SgoolError, match=r"cannot be read: Is a directory\.$"):
        read_image(tmp_path)


@pytest.mark.parametrize(("width", "height"), [(400, 3), (3, 400), (401, 100)])
def test_an_image_too_long_for_its_width_is_refused_before_anything_is_loaded(width, height, tmp_path, capsys):
    Image.new("RGB", (width, height)).save(tmp_path / "in.png")
    arguments = ["demo", "--init-image", str(tmp_path / "in.png"), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"has {width}x{height} pixels; one side may be at most 4 times the other" in line


def test_fit_scales_the_shorter_side_and_crops_to_whole_blocks():
    assert fit(torch.zeros(1, 3, 100, 400), (128, 128)).shape == (1, 3, 128, 512)
    assert fit(torch.zeros(1, 3, 7, 5), (128, 128)).shape == (1, 3, 128, 128)
    for shape in ((3, 400), (0, 5), (401, 100)):
        with pytest.raises(SgoolError, match="initial image has"):
            fit(torch.zeros(1, 3, *shape), (128, 128))


def test_a_mask_is_white_where_it_is_opaque(tmp_path):
    shown = np.full((4, 6, 4), 255, np.uint8)
    shown[:, :2, 3] = 0
    shown[:, 2:4, :3] = 0
    cv2.imwrite(str(tmp_path / "mask.png"), shown)
    assert torch.equal(read_mask(tmp_path / "mask.png"), torch.tensor([[0.0, 0, 0, 0, 1, 1]]).expand(4, 6))
    cv2.imwrite(str(tmp_path / "gray.png"), shown[..., 0])
    assert torch.equal(read_mask(tmp_path / "gray.png"), torch.tensor([[1.0, 1, 0, 0, 1, 1]]).expand(4, 6))
