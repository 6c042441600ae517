"""The published networks at full size, by shapes alone: every tensor is there, none twice.

The expected names and sizes are counted here by hand, layer by layer, from the description in
tests/golden/README.md; the package's networks have no part in it.
"""

import functools
import math

import jax
import pytest

from dmd2_jax.families.edm import family as edm

SCHEDULE = {"sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "num_levels": 1000}
IMAGENET = {
    "model_type": "DhariwalUNet",
    "img_resolution": 64,
    "img_channels": 3,
    "label_dim": 1000,
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
}
CIFAR = {
    "model_type": "SongUNet",
    "img_resolution": 32,
    "img_channels": 3,
    "label_dim": 10,
    "model_channels": 128,
    "channel_mult": [2, 2, 2],
    "num_blocks": 4,
    "attn_resolutions": [16],
    "augment_dim": 9,
}
NCSNPP = {
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "resample_filter": [1, 3, 3, 1],
    "channel_mult_noise": 2,
}
NETWORKS = {
    "imagenet64": IMAGENET,
    "cifar10_vp": CIFAR,
    "cifar10_ve": {**CIFAR, **NCSNPP},
    "cifar10_vp_uncond": {**CIFAR, "label_dim": 0},
}


class Tally:
    """Counts tensors and their numbers by name."""

    def __init__(self, arguments):
        self.a, self.shapes = arguments, {}
        self.adm = arguments["model_type"] == "DhariwalUNet"
        self.taps = len(arguments.get("resample_filter", [1, 1]))
        self.embedding = 4 * arguments["model_channels"]

    def add(self, name, *shape):
        assert name not in self.shapes
        self.shapes[f"model.{name}"] = shape

    def layer(self, name, weight, bias=True):
        self.add(f"{name}.weight", *weight)
        if bias:
            self.add(f"{name}.bias", weight[0])

    def block(self, name, c_in, c_out, attend=False, resample=False):
        factor = 2 if self.adm else 1
        self.layer(f"{name}.norm0", (c_in,))
        self.layer(f"{name}.conv0", (c_out, c_in, 3, 3))
        self.layer(f"{name}.affine", (factor * c_out, self.embedding))
        self.layer(f"{name}.norm1", (c_out,))
        self.layer(f"{name}.conv1", (c_out, c_out, 3, 3))
        if c_in != c_out or (resample and not self.adm):
            self.layer(f"{name}.skip", (c_out, c_in, 1, 1))
        if resample:
            self.add(f"{name}.conv0.resample_filter", 1, 1, self.taps, self.taps)
            self.add(f"{name}.skip.resample_filter", 1, 1, self.taps, self.taps)
        if attend and (c_out >= 64 or not self.adm):  # one head for 64 channels; Song: one
            self.layer(f"{name}.norm2", (c_out,))
            self.layer(f"{name}.qkv", (3 * c_out, c_out, 1, 1))
            self.layer(f"{name}.proj", (c_out, c_out, 1, 1))

    def embed(self):
        a, base = self.a, self.a["model_channels"]
        noise = base * a.get("channel_mult_noise", 1)
        if a.get("embedding_type") == "fourier":
            self.add("map_noise.freqs", noise // 2)
        self.layer("map_layer0", (self.embedding, noise))
        self.layer("map_layer1", (self.embedding, self.embedding))
        if a["label_dim"]:  # ADM adds the label after the layers, without a bias
            size = self.embedding if self.adm else noise
            self.layer("map_label", (size, a["label_dim"]), bias=not self.adm)
        if a.get("augment_dim"):
            self.layer("map_augment", (noise, a["augment_dim"]), bias=False)

    def encode(self):
        a, c, skips = self.a, self.a["img_channels"], []
        auxiliary = c
        for level, mult in enumerate(a["channel_mult"]):
            size = a["img_resolution"] >> level
            if level == 0:
                out = a["model_channels"] * (mult if self.adm else 1)
                self.layer(f"enc.{size}x{size}_conv", (out, c, 3, 3))
                c = out
            else:
                self.block(f"enc.{size}x{size}_down", c, c, resample=True)
                if a.get("encoder_type") == "residual":
                    name = f"enc.{size}x{size}_aux_residual"
                    self.layer(name, (c, auxiliary, 3, 3))
                    self.add(f"{name}.resample_filter", 1, 1, self.taps, self.taps)
                    auxiliary = c
            skips.append(c)
            for index in range(a["num_blocks"]):
                out, attend = a["model_channels"] * mult, size in a["attn_resolutions"]
                self.block(f"enc.{size}x{size}_block{index}", c, out, attend)
                c = out
                skips.append(c)
        return c, skips

    def decode(self, c, skips):
        a, last = self.a, len(self.a["channel_mult"]) - 1
        for level in range(last, -1, -1):
            size, out = a["img_resolution"] >> level, a["model_channels"] * a["channel_mult"][level]
            if level == last:
                self.block(f"dec.{size}x{size}_in0", c, c, attend=True)
                self.block(f"dec.{size}x{size}_in1", c, c)
            else:
                self.block(f"dec.{size}x{size}_up", c, c, resample=True)
            for index in range(a["num_blocks"] + 1):
                attend = size in a["attn_resolutions"]
                attend = attend and (self.adm or index == a["num_blocks"])
                self.block(f"dec.{size}x{size}_block{index}", c + skips.pop(), out, attend)
                c = out
        names = ("out_norm", "out_conv")
        if not self.adm:
            names = (f"dec.{size}x{size}_aux_norm", f"dec.{size}x{size}_aux_conv")
        self.layer(names[0], (c,))
        self.layer(names[1], (a["img_channels"], c, 3, 3))
        assert not skips


def counted(arguments):
    tally = Tally(arguments)
    tally.embed()
    tally.decode(*tally.encode())
    return tally.shapes


@functools.cache
def shapes_of(name):
    """Return ours: the shapes of the tensors by name, and how many numbers the weights are."""
    family = edm.build(edm.from_edm_kwargs(NETWORKS[name]) | SCHEDULE)
    leaves = jax.tree.leaves(family.param_shapes())
    return family.tensor_shapes(), sum(math.prod(leaf.shape) for leaf in leaves)


@pytest.mark.parametrize("name", NETWORKS)
def test_published_network_has_exactly_the_original_tensors(name):
    assert sorted(shapes_of(name)[0].items()) == sorted(counted(NETWORKS[name]).items())


@pytest.mark.parametrize("name", NETWORKS)
def test_published_network_has_one_name_a_weight(name):
    shapes, numbers = shapes_of(name)
    filters = [shape for tensor, shape in shapes.items() if tensor.endswith("resample_filter")]
    assert numbers == sum(map(math.prod, shapes.values())) - sum(map(math.prod, filters))


def test_published_imagenet64_network_has_296_million_weights():
    # Dhariwal and Nichol 2021 (2105.05233) give 296 M
    assert round(shapes_of("imagenet64")[1] / 1e6) == 296
