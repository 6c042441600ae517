"""The networks of the recorded training losses, from their folder's config.json."""

import jax

from dmd2_jax.families.edm import family as edm
from dmd2_jax.networks.gan_head import GanHead, discriminator
from dmd2_jax.recipe.open import Family
from dmd2_jax.weights import state_dict
from tests.conformance.derive import Tensors


def golden_family(recorded: dict) -> edm.EdmFamily:
    """Build the U-Net and schedule of a dmd2_edm_* folder."""
    args = recorded["args"]
    schedule = {
        "sigma_min": args["sigma_min"],
        "sigma_max": args["sigma_max"],
        "rho": args["rho"],
        "num_levels": args["num_train_timesteps"],
    }
    return edm.build(edm.from_edm_kwargs(recorded["network"]) | schedule)


def golden_head(recorded: dict, family: Family) -> tuple[dict, GanHead]:
    """Return the head's tensor shapes by original name, and its module."""
    head = recorded["head"]
    module = GanHead(head["hidden"], head.get("num_stride2_stages"), head["num_groups"])
    template = _template(module, family)
    assert template["head_0"]["0"]["kernel"].shape[2] == head["in_channels"]
    shapes = jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape), template)
    return {k: v.shape for k, v in state_dict.to_tensors(shapes).items()}, module


def head_from_tensors(module: GanHead, family: Family, tensors: Tensors):
    """Turn tensors named as in the original Sequential into discriminator parameters."""
    return state_dict.to_params(tensors, _template(module, family))


def head_to_tensors(params) -> Tensors:
    """Turn discriminator parameters (or their gradients) into tensors of the original names."""
    return state_dict.to_tensors(params)


def _template(module: GanHead, family: Family):
    return jax.eval_shape(
        lambda key: discriminator(module).init(key, family.feature_shapes(2)), jax.random.key(0)
    )
