"""A default that the library and the config both have to state is the same in both."""

import dataclasses
import inspect

import pytest

from dmd2_jax.config import defaults
from dmd2_jax.distill import DistillConfig, dmd2
from dmd2_jax.training.teacher_step import TeacherConfig

CONFIG = defaults.get_config()
OTHERWISE = {"ema_decays", "steps"}
"""A library's user who asks for no average does not pay for one, and says how long a run is."""


def stated(fields: dict[str, object], *groups: str) -> list[tuple[str, object, object]]:
    """The defaults that both state: (key of the config, its default, the library's)."""
    return [
        (f"{group}.{name}", CONFIG[group][name], default)
        for name, default in fields.items()
        for group in groups
        if name in CONFIG[group] and name not in OTHERWISE
    ]


def of_dataclass(kind: type) -> dict[str, object]:
    missing = dataclasses.MISSING
    return {f.name: f.default for f in dataclasses.fields(kind) if f.default is not missing}


OF_DISTILL = stated(of_dataclass(DistillConfig), "distill", "optim")
OF_OBJECTIVES = stated(
    {name: it.default for name, it in inspect.signature(dmd2).parameters.items()}, "distill"
)
OF_TEACHER = stated(of_dataclass(TeacherConfig), "teacher")


def test_both_state_most_of_them() -> None:
    assert len(OF_DISTILL) >= 10 and len(OF_OBJECTIVES) >= 8 and len(OF_TEACHER) >= 5


@pytest.mark.parametrize("key, config, library", [*OF_DISTILL, *OF_OBJECTIVES, *OF_TEACHER])
def test_default_of_the_config_is_the_library_s(key: str, config: object, library: object) -> None:
    assert config == library, key
