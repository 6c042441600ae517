"""The InceptionV3 network that Fréchet inception distances are measured with.

It is the network of TensorFlow's release of 2015, as ported to PyTorch: three details differ from
the torchvision network of the same name, and each moves the features by more than papers differ.

- average pools do not count the padding;
- the last block pools by the maximum, the one before it by the average;
- there are 1,008 logits, of which 1,000 mean something.

Batch norms are folded into the convolutions when weights are read: in evaluation they are a scale
and a shift a channel.

Source: Szegedy et al. 2015 (1512.00567); the release's graph as documented by pytorch-fid.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.weight import weight
from dmd2_jax.typing import Array, Float, Params

RESOLUTION = 299
"""Height and width in pixels of the images that the network takes."""

FEATURES = 2048
LOGITS = 1008

_EPS = 1e-3  # of the folded batch norms
_NORM = ("weight", "bias", "running_mean", "running_var")
_LISTED = 5


class Conv(nn.Module):
    """A convolution with the batch norm folded in, and a ReLU.

    Attributes:
      features: output channels.
      size: (height, width) of the kernel.
      stride: 1, or 2 for one that shrinks the image.
      same: whether the image is padded so that stride 1 keeps its size.
      precision: of the products.
    """

    features: int
    size: tuple[int, int]
    stride: int
    same: bool
    precision: lax.Precision

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 d"]:
        """Return relu(conv(x) + bias)."""
        shape = (*self.size, x.shape[-1], self.features)
        kernel = weight(self, "kernel", nn.initializers.lecun_normal(), shape)
        bias = weight(self, "bias", nn.initializers.zeros, (self.features,))
        x = lax.conv_general_dilated(
            x,
            kernel,
            (self.stride, self.stride),
            [(k // 2, k // 2) if self.same else (0, 0) for k in self.size],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=self.precision,
        )
        return nn.relu(x + bias)


class Block(nn.Module):
    """What the five kinds of mixed blocks share: convolutions by name, pools.

    Attributes:
      precision: of the products.
    """

    precision: lax.Precision

    def conv(
        self, x: Array, name: str, features: int, size=(1, 1), stride: int = 1, same: bool = True
    ) -> Array:
        """Apply the convolution of this name, of torch's state dict; 1 x 1 by default."""
        return Conv(features, size, stride, same and stride == 1, self.precision, name=name)(x)

    def chain(self, x: Array, name: str, *layers: tuple) -> Array:
        """Apply `conv` name_1, name_2, ... with (features, size, stride) each."""
        for i, layer in enumerate(layers):
            x = self.conv(x, f"{name}_{i + 1}", *layer)
        return x


class BlockA(Block):
    """35 x 35: 1 x 1, 5 x 5 and double 3 x 3 convolutions, and a pool of `pool` channels."""

    pool: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return the branches' 224 + pool channels."""
        branches = [
            self.conv(x, "branch1x1", 64),
            self.chain(x, "branch5x5", (48,), (64, (5, 5))),
            self.chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3))),
            self.conv(average_pool(x), "branch_pool", self.pool),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockB(Block):
    """From 35 x 35 to 17 x 17."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return 480 channels more than `x` has."""
        branches = [
            self.conv(x, "branch3x3", 384, (3, 3), 2),
            self.chain(x, "branch3x3dbl", (64,), (96, (3, 3)), (96, (3, 3), 2)),
            shrink(x),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockC(Block):
    """17 x 17: 7 x 7 convolutions as pairs of 1 x 7 and 7 x 1, `width` channels between."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return 768 channels."""
        c, row, column = self.width, (1, 7), (7, 1)
        branches = [
            self.conv(x, "branch1x1", 192),
            self.chain(x, "branch7x7", (c,), (c, row), (192, column)),
            self.chain(x, "branch7x7dbl", (c,), (c, column), (c, row), (c, column), (192, row)),
            self.conv(average_pool(x), "branch_pool", 192),
        ]
        return jnp.concatenate(branches, axis=-1)


class BlockD(Block):
    """From 17 x 17 to 8 x 8."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return 512 channels more than `x` has."""
        branches = [
            self.chain(x, "branch3x3", (192,), (320, (3, 3), 2)),
            self.chain(
                x, "branch7x7x3", (192,), (192, (1, 7)), (192, (7, 1)), (192, (3, 3), 2)
            ),
            shrink(x),
        ]  # fmt: skip
        return jnp.concatenate(branches, axis=-1)


class BlockE(Block):
    """8 x 8: 3 x 3 convolutions fanned out into 1 x 3 and 3 x 1; `max_pool` in the last one."""

    max_pool: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return 2,048 channels."""
        single = self.conv(x, "branch3x3_1", 384)
        double = self.chain(x, "branch3x3dbl", (448,), (384, (3, 3)))
        pooled = nn.max_pool(x, (3, 3), padding="SAME") if self.max_pool else average_pool(x)
        branches = [
            self.conv(x, "branch1x1", 320),
            self.conv(single, "branch3x3_2a", 384, (1, 3)),
            self.conv(single, "branch3x3_2b", 384, (3, 1)),
            self.conv(double, "branch3x3dbl_3a", 384, (1, 3)),
            self.conv(double, "branch3x3dbl_3b", 384, (3, 1)),
            self.conv(pooled, "branch_pool", 192),
        ]
        return jnp.concatenate(branches, axis=-1)


class InceptionV3(Block):
    """Images of 299 x 299 pixels -> 2,048 features and 1,008 logits.

    The outputs of the stages that pytorch-fid calls blocks 0, 1 and 2 are sown as
    intermediates/block0, block1, block2.

    Attributes:
      precision: of the products. Full float32 by default, also where the hardware would round
        to bfloat16 or TF32: distances are compared to the last digits.
      output_bias: whether the logits have the bias of the last layer; the Inception Score's
        reference implementations leave it out.
    """

    precision: lax.Precision = lax.Precision.HIGHEST
    output_bias: bool = False

    @nn.compact
    def __call__(
        self, images: Float[Array, "b 299 299 3"]
    ) -> tuple[Float[Array, "b 2048"], Float[Array, "b 1008"]]:
        """Return (features, logits) of images.

        Args:
          images: [b, 299, 299, 3] in [-1, 1] (`metrics.features.resize` says how they get there).

        Returns:
          features [b, 2048], the average over space of the last block, and logits [b, 1008].
        """
        p = self.precision
        x = self.conv(images, "Conv2d_1a_3x3", 32, (3, 3), 2)
        x = self.conv(x, "Conv2d_2a_3x3", 32, (3, 3), same=False)
        x = shrink(self.conv(x, "Conv2d_2b_3x3", 64, (3, 3)))
        self.sow("intermediates", "block0", x)
        x = self.conv(x, "Conv2d_3b_1x1", 80)
        x = shrink(self.conv(x, "Conv2d_4a_3x3", 192, (3, 3), same=False))
        self.sow("intermediates", "block1", x)
        for name, pool in (("5b", 32), ("5c", 64), ("5d", 64)):
            x = BlockA(p, pool, name=f"Mixed_{name}")(x)
        x = BlockB(p, name="Mixed_6a")(x)
        for name, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
            x = BlockC(p, width, name=f"Mixed_{name}")(x)
        self.sow("intermediates", "block2", x)
        x = BlockD(p, name="Mixed_7a")(x)
        x = BlockE(p, max_pool=False, name="Mixed_7b")(x)
        x = BlockE(p, max_pool=True, name="Mixed_7c")(x)
        features = x.mean(axis=(1, 2))
        head = _Head(LOGITS, p, self.output_bias, name="fc")
        return features, head(features)


class _Head(nn.Module):
    """A linear layer that has its bias whether or not it adds it."""

    features: int
    precision: lax.Precision
    add_bias: bool

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = weight(self, "kernel", nn.initializers.lecun_normal(), shape)
        bias = weight(self, "bias", nn.initializers.zeros, (self.features,))
        logits = jnp.dot(x, kernel, precision=self.precision)
        return logits + bias if self.add_bias else logits


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Average over 3 x 3 neighbours, of those that exist."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def shrink(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Take the maximum over 3 x 3 neighbours at every second place, without padding."""
    return nn.max_pool(x, (3, 3), strides=(2, 2))


def inception_params(tensors: Mapping[str, np.ndarray]) -> Params:
    """Turn the state dict of pytorch-fid's network into this network's parameters.

    A batch norm gamma (conv(x) - mean) / sqrt(var + eps) + beta is folded into its convolution,
    in float64.

    Args:
      tensors: torchvision's names: `Mixed_5b.branch1x1.conv.weight` [out, in, h, w],
        `Mixed_5b.branch1x1.bn.running_var`, ..., `fc.weight` [1008, 2048]. Counters
        (`num_batches_tracked`) and the auxiliary classifier (`AuxLogits.*`) are left out.

    Returns:
      The "params" collection of `InceptionV3`, float32.

    Raises:
      ValueError: if tensors are missing, unknown, misshapen or not finite; it names them.
    """
    given = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.endswith("num_batches_tracked") and not name.startswith("AuxLogits.")
    }
    template = jax.eval_shape(
        lambda: InceptionV3().init(
            jax.random.key(0), jnp.zeros((1, RESOLUTION, RESOLUTION, 3))
        )["params"]
    )  # fmt: skip
    _check(given, _expected_shapes(template))

    def fold(path: tuple, _: jax.ShapeDtypeStruct) -> np.ndarray:
        *layers, leaf = (entry.key for entry in path)
        name = ".".join(layers)
        if name == "fc":
            return given["fc.weight"].T if leaf == "kernel" else given["fc.bias"]
        gamma, beta, mean, variance = (given[f"{name}.bn.{n}"].astype(np.float64) for n in _NORM)
        scale = gamma / np.sqrt(variance + _EPS)
        if leaf == "bias":
            return beta - mean * scale
        return given[f"{name}.conv.weight"].transpose(2, 3, 1, 0) * scale

    folded = jax.tree_util.tree_map_with_path(fold, template)
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), folded)


def _expected_shapes(template: Params) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the state dict's tensors by name."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(template):
        *layers, kind = (entry.key for entry in path)
        name = ".".join(layers)
        if name == "fc":
            shape = leaf.shape[::-1]
            shapes["fc.weight" if kind == "kernel" else "fc.bias"] = shape
        elif kind == "kernel":
            h, w, c, d = leaf.shape
            shapes[f"{name}.conv.weight"] = (d, c, h, w)
            shapes |= {f"{name}.bn.{norm}": (d,) for norm in _NORM}
    return shapes


def _check(tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise one ValueError that says in which ways the tensors are not those of the network."""
    common = [name for name in shapes if name in tensors]
    problems = {
        "missing": [name for name in shapes if name not in tensors],
        "unknown": [name for name in tensors if name not in shapes],
        "misshapen": [
            f"{name} {tensors[name].shape} instead of {shapes[name]}"
            for name in common
            if tensors[name].shape != shapes[name]
        ],
        "not finite": [
            name for name in common if not np.isfinite(tensors[name].astype(np.float32)).all()
        ],
    }
    found = [
        f"{len(names)} {kind}: {', '.join(names[:_LISTED])}{', ...' * (len(names) > _LISTED)}"
        for kind, names in problems.items()
        if names
    ]
    if found:
        raise Refused(
            f"got {len(tensors)} tensors with {'; '.join(found)}; expected the {len(shapes)} of "
            "pytorch-fid's InceptionV3 (torchvision's names, 1,008 logits); use "
            "pt_inception-2015-12-05-6726825d.pth."
        )
