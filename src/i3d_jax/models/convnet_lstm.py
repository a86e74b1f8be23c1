"""ConvNet+LSTM: Inception-v1 on every frame, an LSTM with batch norm over its averaged features (paper, section 2.1).

The recurrent batch norm is that of Cooijmans et al., *Recurrent Batch Normalization* (ICLR 2017), equations 6 to 8:

    (f, i, o, g) = BN(W_h h_{t-1}; gamma_h) + BN(W_x x_t; gamma_x) + b
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(BN(c_t; gamma_c, beta_c))

with statistics of their own for every time step, gammas that start at 0.1 (section 4) and no offset where b has that part.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from i3d_jax.models import convolution, layers
from i3d_jax.models.inception import Inception
from i3d_jax.models.initializers import kernel_init
from i3d_jax.models.network import VIDEO, Network
from i3d_jax.models.timing import Timing


class ConvNetLSTM(Network):
    """ConvNet+LSTM; frames are those of its own, slower clock (every fifth of 25 per second).

    In training the logits are f32 [B, T, K] and each is taught; at test they are the last step's (section 2.1).
    Dropout, which the paper does not mention here, is before the last layer, as in the other networks.

    Attributes:
      norm_steps: time steps that have batch norm statistics of their own; later ones use the last's. The paper's
        training clips have 25.
      norm_scale: what the gammas start at: 0.1, or more for a few steps and a short run.
    """

    norm_steps: int = 25
    norm_scale: float = 0.1

    @property
    def timing(self) -> Timing:
        return Timing(carries=True)

    @nn.compact
    def __call__(
        self, video: jax.Array, train: bool = False, endpoints: bool = False, carry: Any = None
    ):
        """See `Network`; also takes and, as the endpoint "carry", returns the state that the past has left."""
        self.check_stream(video, "ConvNet+LSTM", VIDEO, train)
        inception = Inception(None, dims=2, **self.shared(), name="inception")
        features, ends = inception(video, train, endpoints=True)
        lstm = NormLSTM(
            self.scaled(512),
            self.norm_steps,
            self.norm_scale,
            self.norm_groups(video.shape[0], train),
            self.norm_decay,
            dtype=self.dtype,
            name="lstm",
        )
        states, carry = lstm(features, self.trunk(train), carry)
        x = self.classify(states, train)
        ends = ends | {"LSTM": states, "Logits": x, "carry": carry}
        logits = x if train else x[:, -1]
        return (logits, ends) if endpoints else logits


class NormLSTM(nn.Module):
    """LSTM with recurrent batch norm, f32 [B, T, C] -> f32 [B, T, hidden]; see above.

    What Cooijmans et al. leave open: the recurrent kernel starts with orthogonal rows (their choice where it is not the
    identity), the forget gate's bias at 1 (Jozefowicz et al. 2015: it must not forget before it has learnt to
    remember). Statistics are of `groups` runs of clips as in `layers.BatchNorm`; those of steps that a clip does not
    have are the last step's.
    """

    hidden: int
    steps: int
    scale: float = 0.1
    groups: int = 1
    decay: float = 0.999
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool, carry: Any = None):
        batch, frames, channels = x.shape
        gates = 4 * self.hidden
        input_kernel = self.param("input_kernel", kernel_init, (channels, gates))
        hidden_kernel = self.param(
            "hidden_kernel", nn.initializers.orthogonal(), (self.hidden, gates), jnp.float32
        )
        gamma = nn.initializers.constant(self.scale)
        input_scale = self.param("input_scale", gamma, (gates,), jnp.float32)
        hidden_scale = self.param("hidden_scale", gamma, (gates,), jnp.float32)
        cell_scale = self.param("cell_scale", gamma, (self.hidden,), jnp.float32)
        cell_bias = self.param("cell_bias", nn.initializers.zeros, (self.hidden,), jnp.float32)
        bias = self.param(
            "bias", lambda *_: jnp.zeros(gates, jnp.float32).at[: self.hidden].set(1.0)
        )  # f, i, o, g.
        sizes = {"input": gates, "hidden": gates, "cell": self.hidden}
        running = {
            name: (
                self.variable(
                    "batch_stats", f"{name}_mean", jnp.zeros, (self.steps, size), jnp.float32
                ),
                self.variable(
                    "batch_stats", f"{name}_var", jnp.ones, (self.steps, size), jnp.float32
                ),
            )
            for name, size in sizes.items()
        }

        def product(values, kernel):
            dot = jnp.dot(values.astype(self.dtype), kernel.astype(self.dtype))
            return convolution.at_least_float32(dot)

        def step(carry, inputs):
            cell, state, now = carry
            slot = jnp.minimum(now, self.steps - 1)
            found = {}

            def norm(name, values, scale):
                if train:
                    found[name] = mean, var = moments(values, self.groups)
                    mean, var = (jnp.repeat(each, batch // self.groups, 0) for each in (mean, var))
                else:
                    mean, var = (jnp.asarray(each.value)[slot][None] for each in running[name])
                return ((values - mean) * lax.rsqrt(var + self.epsilon) * scale[None]).astype(dtype)

            total = norm("hidden", product(state, hidden_kernel), hidden_scale)
            total += norm("input", inputs, input_scale) + bias[None]
            forget, take, give, new = jnp.split(total, 4, -1)
            cell = nn.sigmoid(forget) * cell + nn.sigmoid(take) * jnp.tanh(new)
            state = nn.sigmoid(give) * jnp.tanh(norm("cell", cell, cell_scale) + cell_bias[None])
            return (cell, state, now + 1), (state, found)

        if train:
            layers.check_groups(batch, batch, self.groups)
        inputs = jnp.moveaxis(product(x, input_kernel), 1, 0)
        dtype = jnp.result_type(inputs, bias)
        if carry is None:
            zeros = jnp.zeros((batch, self.hidden), dtype)
            carry = zeros, zeros, jnp.zeros((), jnp.int32)
        carry, (states, found) = lax.scan(step, carry, inputs)
        if train and not self.is_initializing():
            slots = jnp.minimum(jnp.arange(self.steps), frames - 1)
            for name, moved in running.items():
                for each, value in zip(moved, found[name], strict=True):
                    each.value = layers.moving_average(each.value, value.mean(1)[slots], self.decay)
        return jnp.moveaxis(states, 0, 1), carry


def moments(values: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Mean and variance [groups, C] of the groups of clips in [B, C]."""
    grouped = values.reshape(groups, -1, values.shape[-1])
    mean = grouped.mean(1)
    return mean, jnp.square(grouped - mean[:, None]).mean(1)
