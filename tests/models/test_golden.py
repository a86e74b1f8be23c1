"""The released checkpoint on real clips, against the logits of an independent implementation.

The expected logits were computed in float32 on a CPU.
"""

import av
import jax
import numpy as np
import pytest

from i3d_jax import models, pixels, weights
from i3d_jax.models import convolution

pytestmark = pytest.mark.slow

GOLDEN = {
    "kinetics-i3d/v_CricketShot_g04_c01_rgb.gif": (
        {"playing cricket": 20.489, "robot dancing": 14.899, "pumping fist": 14.293},
        93.412,
    ),
    "clips/flipping_a_pancake.mkv": (
        {"flipping pancake": 10.611, "eating chips": 9.580, "cleaning shoes": 9.292},
        84.895,
    ),
}


@pytest.fixture(scope="module")
def released(shared_data):
    return weights.read(shared_data / "kinetics-i3d" / "checkpoints" / "rgb_scratch")


def logits_of(clip, variables):
    model = models.build("i3d", num_classes=400)
    apply = jax.jit(
        lambda variables, video: model.apply(variables, video),
        compiler_options=models.compiler_options(),
    )
    return np.asarray(apply(variables, pixels.to_unit(clip)[None]))[0]


def first_32_frames(path):
    """The frames of a file, without resampling or resizing."""
    with av.open(path) as container:
        frames = [
            frame.to_ndarray(format="rgb24")
            for frame, _ in zip(container.decode(video=0), range(32), strict=False)
        ]
    return pixels.crop(np.stack(frames), 224)


@pytest.mark.parametrize("clip", GOLDEN)
def test_released_weights_give_the_golden_logits(clip, released, shared_data):
    top, norm = GOLDEN[clip]
    variables, info = released
    logits = dict(
        zip(info.classes, logits_of(first_32_frames(shared_data / clip), variables), strict=True)
    )
    best = sorted(logits, key=logits.get, reverse=True)[:3]
    assert best == list(top)
    assert [logits[name] for name in best] == pytest.approx(list(top.values()), abs=1e-3)
    assert np.linalg.norm(list(logits.values())) == pytest.approx(norm, abs=2e-3)


def test_fewer_multiplications_change_logits_by_less_than_one_in_ten_thousand(
    released, shared_data, monkeypatch
):
    clip, found = first_32_frames(shared_data / next(iter(GOLDEN))), {}
    for large in 0, np.inf:
        monkeypatch.setattr(convolution, "MIN_MULTIPLY_ADDS", large)
        monkeypatch.setattr(convolution, "MIN_POSITIONS", 0)
        found[large] = logits_of(clip, released[0])
    np.testing.assert_allclose(found[0], found[np.inf], atol=1e-4)
