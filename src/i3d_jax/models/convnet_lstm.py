"""ConvNet+LSTM: Inception-v1 on every frame, then an LSTM with batch norm (paper, section 2.1).

The recurrent batch norm is from Cooijmans et al., *Recurrent Batch Normalization* (ICLR 2017),
equations 6 to 8:

    (f, i, o, g) = BN(W_h h_{t-1}; gamma_h) + BN(W_x x_t; gamma_x) + b
    c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g)
    h_t = sigmoid(o) * tanh(BN(c_t; gamma_c, beta_c))

Every time step has its own statistics. The gammas start at 0.1 (section 4). There is no separate
offset where b already adds one.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from i3d_jax.models import convolution, layers, streaming
from i3d_jax.models.inception import Inception
from i3d_jax.models.initializers import kernel_init
from i3d_jax.models.network import VIDEO, Network
from i3d_jax.models.timing import Timing


class ConvNetLSTM(Network):
    """ConvNet+LSTM on frames that are further apart: every fifth of 25 per second.

    In training the logits are f32 [B, T, K], and each time step has a loss. At test they are
    those of the last step (section 2.1). Dropout is before the last layer, as in the other
    networks; the paper does not mention it here.

    Attributes:
      norm_steps: time steps with their own batch norm statistics; later steps use the last
        ones. The paper's training clips have 25 steps.
      norm_scale: initial value of the gammas. The default is 0.1; short runs train faster with
        a larger value.
    """

    norm_steps: int = 25
    norm_scale: float = 0.1

    @property
    def timing(self) -> Timing:
        return Timing(last_only=True)

    @nn.nowrap
    def endpoint_path(self, name: str) -> tuple[str, ...]:
        """See `Network`."""
        return "inception", name

    @nn.compact
    def __call__(self, video: jax.Array, train: bool = False, endpoints: bool = False):
        """See `Network`."""
        self.check_stream(video, "ConvNet+LSTM", VIDEO, train)
        inception = Inception(None, dims=2, **self.shared_attributes(), name="inception")
        features, ends = inception(video, train, endpoints=True)
        lstm = NormLSTM(
            self.scaled_channels(512),
            self.norm_steps,
            self.norm_scale,
            self.norm_groups(streaming.values_of(video).shape[0], train),
            self.norm_decay,
            dtype=self.dtype,
            name="lstm",
        )
        states = lstm(features, self.trains_backbone(train))
        x = streaming.per_step(lambda states: self.classify(states, train), states)
        ends = ends | {"LSTM": states, "Logits": x}
        logits = x if train or isinstance(x, streaming.Chunk) else x[:, -1]
        return (logits, ends) if endpoints else logits


class NormLSTM(nn.Module):
    """LSTM with recurrent batch norm, f32 [B, T, C] -> f32 [B, T, hidden].

    Cooijmans et al. leave two initial values open. The recurrent kernel starts with orthogonal
    rows (their choice where it is not the identity). The forget gate's bias starts at 1
    (Jozefowicz et al. 2015), so that the cell keeps its state from the start. Statistics are
    those of `groups` groups of clips, as in `layers.BatchNorm`. Steps beyond the end of a
    training clip get the statistics of its last step.
    """

    hidden: int
    steps: int
    scale: float = 0.1
    groups: int = 1
    decay: float = 0.999
    epsilon: float = 1e-5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, train: bool):
        chunk, x = x, streaming.values_of(x)
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
                    mean, var = (jnp.asarray(each.value)[slot] for each in running[name])
                return ((values - mean) * lax.rsqrt(var + self.epsilon) * scale[None]).astype(dtype)

            total = norm("hidden", product(state, hidden_kernel), hidden_scale)
            total += norm("input", inputs, input_scale) + bias[None]
            forget_gate, input_gate, output_gate, candidate = jnp.split(total, 4, -1)
            cell = nn.sigmoid(forget_gate) * cell + nn.sigmoid(input_gate) * jnp.tanh(candidate)
            state = nn.sigmoid(output_gate) * jnp.tanh(
                norm("cell", cell, cell_scale) + cell_bias[None]
            )
            return (cell, state, now + 1), (state, found)

        if train:
            layers.check_groups(batch, batch, self.groups)
        inputs = jnp.moveaxis(product(x, input_kernel), 1, 0)
        dtype = jnp.result_type(inputs, bias)
        cell = state = jnp.zeros((batch, self.hidden), dtype)
        now = jnp.zeros(batch, jnp.int32)
        past = None
        if isinstance(chunk, streaming.Chunk):
            start = cell, state
            past = self.variable("stream", "past", lambda: start)
            now = chunk.now
            # A new video begins with zeros.
            cell, state = (jnp.where((now > 0)[:, None], each, 0) for each in past.value)
        (cell, state, _), (states, found) = lax.scan(step, (cell, state, now), inputs)
        if past is not None:
            past.value = cell, state
        if train and not self.is_initializing():
            slots = jnp.minimum(jnp.arange(self.steps), frames - 1)
            for name, moved in running.items():
                for each, value in zip(moved, found[name], strict=True):
                    each.value = layers.moving_average(each.value, value.mean(1)[slots], self.decay)
        return streaming.steps_of(chunk, jnp.moveaxis(states, 0, 1))


def moments(values: jax.Array, groups: int) -> tuple[jax.Array, jax.Array]:
    """Mean and variance [groups, C] of each group of clips in values [B, C]."""
    grouped = values.reshape(groups, -1, values.shape[-1])
    mean = grouped.mean(1)
    return mean, jnp.square(grouped - mean[:, None]).mean(1)
