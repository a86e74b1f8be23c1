import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from i3d_jax.evaluate import evaluate


class Given(nn.Module):
    """Gives the logits that are written into the first pixels of its input, in units of 1 / 127.5 - 1."""

    @nn.compact
    def __call__(self, video):
        return video[:, 0, 0, :, 0]


class Constant(nn.Module):
    value: float

    @nn.compact
    def __call__(self, video):
        return jnp.full((video.shape[0], 10), self.value)


def batch(logits, label, weight):
    video = np.zeros((len(label), 1, 1, 10, 3), np.uint8)
    video[:, 0, 0, :, 0] = logits
    return {"video": video, "label": np.array(label, np.int32), "weight": np.array(weight, np.float32)}


def test_accuracies_and_loss_are_over_the_clips_of_weight_one():
    ranks = np.arange(10)[::-1] * 10  # Class 0 first.
    batches = [batch([ranks] * 3, [0, 4, 5], [1, 1, 1]), batch([ranks] * 3, [9, 0, 0], [1, 0, 0])]
    result = evaluate(Given(), {}, batches)
    assert result["clips"] == 4
    assert result["top1"] == pytest.approx(1 / 4) and result["top5"] == pytest.approx(2 / 4)
    logits = ranks / 127.5 - 1
    wanted = np.mean([np.log(np.exp(logits).sum()) - logits[i] for i in (0, 4, 5, 9)])
    assert result["loss"] == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("value,top1", [(0.0, 0.1), (np.nan, 0.0)])
def test_a_network_that_says_nothing_is_not_right(value, top1):
    result = evaluate(Constant(value), {}, [batch(np.zeros((10, 10)), list(range(10)), [1] * 10)])
    assert result["top1"] == pytest.approx(top1)
