"""The figures of metrics.json, set by set."""

from dmd2_jax.evaluate.sets import by_set


def test_by_set_gives_each_figure_to_the_set_of_the_longest_name() -> None:
    metrics = {
        "student_fid": 2.0,
        "student_num_samples": 10,
        "student_ema_0.9_fid": 1.5,
        "student_ema_0.9_num_samples": 20,
        "seed": 0,
    }
    assert by_set(metrics) == {
        "student": {"fid": 2.0, "num_samples": 10},
        "student_ema_0.9": {"fid": 1.5, "num_samples": 20},
    }
