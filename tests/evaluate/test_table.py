"""The table of figures, checked cell by cell."""

import re

from dmd2_jax.evaluate.table import metrics_table


def cells(metrics):
    """Return the rows as lists of cells."""
    return [re.split(r"  +", line.strip()) for line in metrics_table(metrics).splitlines()]


def test_metrics_table_gives_each_figure_to_its_own_set():
    metrics = {
        "student_fid": 2.0,
        "student_num_samples": 10,
        "student_ema_0.9_fid": 1.5,
        "student_ema_0.9_num_samples": 10,
    }
    assert cells(metrics) == [["FID"], ["student", "2.000"], ["student_ema_0.9", "1.500"]]


def test_metrics_table_puts_calls_and_time_last_and_dashes_where_there_is_nothing():
    metrics = {
        "real_fid_floor": 0.25,
        "teacher_nfe": 35,
        "teacher_seconds_per_image": 0.002,
        "teacher_fid": 1.0,
        "teacher_class_accuracy": 0.5,
        "teacher_num_samples": 10,
        "images_recall": 0.75,
        "images_num_samples": 10,
    }
    assert cells(metrics) == [
        ["FID", "recall", "class accuracy", "calls/image", "ms/image"],
        ["teacher", "1.000", "-", "50.00%", "35", "2.000"],
        ["images", "-", "0.750", "-", "-", "-"],
        ["real, half to half", "0.250", "-", "-", "-", "-"],
    ]


def test_metrics_table_shows_a_deviation_behind_its_figure_and_no_bias():
    metrics = {
        "images_inception_score": 9.5,
        "images_inception_score_std": 0.125,
        "images_patch_fid": 3.0,
        "images_patch_fid_bias": 0.1,
        "images_num_samples": 10,
        "seed": 0,
    }
    assert cells(metrics) == [["IS", "patch FID"], ["images", "9.500 ± 0.125", "3.000"]]
