"""The released checkpoint on real clips, against logits that an independent implementation gave (float32, CPU)."""

import av
import jax
import numpy as np
import pytest

from i3d_jax import models, video, weights
from i3d_jax.models import layers

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
def classify(shared_data):
    variables, info = weights.read(shared_data / "kinetics-i3d" / "checkpoints" / "rgb_scratch")
    model = models.build("i3d", num_classes=400)
    apply = jax.jit(model.apply, compiler_options=layers.compiler_options())
    return lambda clip: dict(zip(info.classes, np.asarray(apply(variables, video.to_unit(clip)[None]))[0], strict=True))


@pytest.mark.parametrize("clip", GOLDEN)
def test_released_weights_give_the_golden_logits(clip, classify, shared_data):
    top, norm = GOLDEN[clip]
    # Frames 0 to 31 as the file has them: no resampling, no resizing.
    with av.open(shared_data / clip) as container:
        frames = [
            frame.to_ndarray(format="rgb24") for frame, _ in zip(container.decode(video=0), range(32), strict=False)
        ]
    logits = classify(video.crop(np.stack(frames), 224))
    best = sorted(logits, key=logits.get, reverse=True)[:3]
    assert best == list(top)
    assert [logits[name] for name in best] == pytest.approx(list(top.values()), abs=1e-3)
    assert np.linalg.norm(list(logits.values())) == pytest.approx(norm, abs=2e-3)
