import numpy as np
import pytest

from i3d_jax.pictures import heat


@pytest.mark.parametrize(
    "height,width,wanted",
    [
        (256, 340, (16, 58, 224)),
        (720, 1280, (45, 325, 630)),
        (1280, 720, (325, 45, 630)),
        (1, 9, (0, 4, 1)),
    ],
)
def test_the_square_is_the_centre_crop_in_the_frames_own_pixels(height, width, wanted):
    assert heat.seen_square(height, width, 256, 224) == wanted


def test_without_a_resize_the_square_is_all_that_is_seen():
    assert heat.seen_square(100, 100, 224, 224) == (0, 0, 100)


def test_colours_are_viridis_and_lie_in_the_square_only():
    image = np.full((8, 12, 3), 100, np.uint8)
    mixed = heat.overlay(image, np.array([[0, 0], [0, 1.0]]), (2, 5, 4))
    # Viridis goes from (68, 1, 84) to (253, 231, 37).
    assert mixed[2, 5].tolist() == [84, 50, 92]
    assert mixed[5, 8].tolist() == [176, 166, 68]
    outside = np.ones((8, 12), bool)
    outside[2:6, 5:9] = False
    assert (mixed[outside] == 100).all() and (image == 100).all()
    assert (mixed[~outside] != 100).any(-1).all()


def test_alpha_is_the_share_of_the_colour():
    image = np.zeros((2, 2, 3), np.uint8)
    assert heat.overlay(image, np.ones((1, 1)), alpha=1.0)[0, 0].tolist() == [253, 231, 37]
    assert (heat.overlay(image, np.ones((1, 1)), alpha=0.0) == 0).all()
