"""Numbers of a stranger's config.json that would make a network without end."""

from pathlib import Path

import pytest

from dmd2_jax.config.refused import Refused
from dmd2_jax.families.published.folder import read_component_config


@pytest.mark.parametrize(
    "text",
    [
        '{"num_layers": 1000000000}',
        '{"transformer_layers_per_block": [1, [2, 5000]]}',
        '{"block_out_channels": [1000000000, 1000000000]}',
        '{"num_train_timesteps": 1000000000000}',
        '{"sample_size": 1000000}',
        '{"sample_size": 1' + "0" * 400 + "}",
        '{"sample_size": 1' + "0" * 5000 + "}",
        '{"size": {"height": 1000000000}}',
        '{"beta_end": NaN}',
        '{"lambda_min_clipped": NaN}',
        '{"beta_end": 1e400}',
    ],
)
def test_numbers_beyond_every_model_are_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(Refused, match="config.json") as caught:
        read_component_config(tmp_path)
    assert len(str(caught.value)) < 400


def test_numbers_of_large_models_are_read(tmp_path: Path) -> None:
    text = '{"vocab_size": 250112, "num_layers": 57, "num_train_timesteps": 1000, "shift": null}'
    (tmp_path / "config.json").write_text(text)
    assert read_component_config(tmp_path)["vocab_size"] == 250112


def test_the_infinity_that_diffusers_writes_is_read(tmp_path: Path) -> None:
    (tmp_path / "scheduler_config.json").write_text('{"lambda_min_clipped": -Infinity}')
    config = read_component_config(tmp_path, "scheduler_config.json")
    assert config["lambda_min_clipped"] == -float("inf")
