"""What the denoising transformers share: their ways to be called, and to go through blocks."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from dmd2_jax.config.refused import Refused
from dmd2_jax.networks.block_loop import BlockLoop, Carry, blocks_in_a_row
from dmd2_jax.networks.feature_blocks import block_runs
from dmd2_jax.typing import Array, DType, Float, PyTree

__all__ = ["DenoisingTransformer", "Result", "check_sides"]

Result = tuple[Array | None, tuple[Array, ...]]
"""(prediction or None, features)."""


class DenoisingTransformer(nn.Module):
    """A transformer that predicts what denoises, and shows its tokens after some blocks.

    A network of this kind has `compute`, a compact method, `num_blocks` and `patch`.

    Attributes:
      feature_blocks: numbers of the blocks whose outputs are `features`.
      dtype: type of the computation; sinusoids, norms, rotations and softmax are float32.
      remat: "none"; "block": recompute each block in the backward pass; "full": everything.
      scan_layers: loop over equal blocks (networks/block_loop.py).
    """

    feature_blocks: tuple[int, ...] = dataclasses.field(default=(), kw_only=True)
    dtype: DType = dataclasses.field(default=jnp.float32, kw_only=True)
    remat: str = dataclasses.field(default="none", kw_only=True)
    scan_layers: bool = dataclasses.field(default=False, kw_only=True)

    def __call__(self, *inputs: Array | None) -> Float[Array, "b h w c"]:
        """Return the raw prediction, float32.

        Args:
          inputs: those of the network's `compute`.

        Raises:
          ValueError: if a shape does not fit the network.
        """
        return self.call_with_features(*inputs)[0]

    def features(self, *inputs: Array | None) -> tuple[Array, ...]:
        """Return the image's tokens [b, h / p, w / p, width] after `feature_blocks`, float32.

        What comes after the last of them is not computed.
        """
        return self._once(False, inputs)[1]

    def call_with_features(self, *inputs: Array | None) -> tuple[Array, tuple[Array, ...]]:
        """Return (prediction, features) from one pass, float32."""
        prediction, features = self._once(True, inputs)
        assert prediction is not None
        return prediction, features

    def compute(self, decode: bool, *inputs: Any) -> Result:
        """Return (prediction, or None without `decode`; features), of the network's own inputs."""
        raise NotImplementedError  # the network's own, with @nn.compact

    def _once(self, decode: bool, inputs: Sequence[Array | None]) -> Result:
        call: Callable[..., Any] = type(self).compute
        if self.remat == "full":
            call = nn.remat(call, static_argnums=(1,))
        return call(self, decode, *inputs)

    def runs(
        self, kinds: Sequence[Any], decode: bool, ends: Sequence[int] = ()
    ) -> Iterator[tuple[Any, tuple[int, ...]]]:
        """Yield runs of equal blocks; without `decode` none behind the last feature.

        Args:
          kinds: what each block is like.
          decode: as of `compute`.
          ends: numbers of further blocks after which a run ends.

        Yields:
          (kind, numbers of the blocks) of each run; features end runs.
        """
        left = len(self.feature_blocks)
        for kind, numbers in block_runs(kinds, (*self.feature_blocks, *ends)):
            if not decode and not left:
                return
            yield kind, numbers
            left -= numbers[-1] in self.feature_blocks

    def blocks(
        self,
        kind: type[nn.Module],
        settings: Mapping[str, Any],
        names: Sequence[str],
        carry: Carry,
        *fixed: PyTree,
    ) -> Carry:
        """Apply blocks of one kind as the network's settings say: carry <- block(carry, *fixed).

        Args:
          kind: class of the blocks.
          settings: attributes of each beside the dtype.
          names: of the blocks, in their order.
          carry: what each takes and returns.
          fixed: what all of them take beside it.
        """
        loop = BlockLoop(self.remat, self.scan_layers, self.dtype)
        whole = {**settings, "dtype": self.dtype}
        return blocks_in_a_row(self, kind, whole, names, carry, *fixed, loop=loop)


def check_sides(sample: Array, patch: int) -> None:
    """Refuse latents [b, h, w, c] that are not divided by patches of a side."""
    height, width = sample.shape[1:3]
    if height % patch or width % patch:
        raise Refused(
            f"latents of {height} x {width}, expected sides divisible by {patch}; choose another "
            "resolution."
        )
