"""Scheduler configs: the diffusion they describe, the times they sample at, what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from dmd2_jax.families.published.scheduler import (
    ddim_times,
    lcm_times,
    read_scheduler,
    recorded_times,
    student_scheduler,
)

# As stable-diffusion-v1-5 publishes it, older than prediction_type and timestep_spacing.
SD15 = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def test_read_scheduler_reads_betas_by_hand():
    config = SD15 | {"beta_schedule": "linear", "beta_start": 0.1, "beta_end": 0.3}
    schedule, _ = read_scheduler(config | {"num_train_timesteps": 3})
    np.testing.assert_array_equal(schedule.levels, [0, 1, 2])
    expected = np.sqrt([0.9, 0.9 * 0.8, 0.9 * 0.8 * 0.7])
    np.testing.assert_allclose(schedule.alpha(jnp.arange(3)), expected, rtol=1e-6)


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_read_scheduler_has_the_table_of_diffusers(betas):
    pytest.importorskip("torch")  # without it diffusers has no schedulers
    diffusers = pytest.importorskip("diffusers")
    config = SD15 | {"beta_schedule": betas}
    schedule, _ = read_scheduler(config)
    table = diffusers.DDIMScheduler.from_config(config).alphas_cumprod.numpy()
    squared = np.asarray(schedule.alpha(jnp.arange(1000))).astype(np.float64) ** 2
    # float32 products of diffusers; the cosine's table falls to 2e-9.
    np.testing.assert_allclose(squared, table, rtol=1e-4)


@pytest.mark.parametrize(
    ("prediction_type", "kind"),
    [(None, "eps"), ("epsilon", "eps"), ("v_prediction", "v"), ("sample", "x0")],
)
def test_read_scheduler_translates_the_prediction_type(prediction_type, kind):
    assert read_scheduler(SD15 | {"prediction_type": prediction_type}).kind == kind
    assert read_scheduler(SD15).kind == "eps"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction_type": "flow"}, "prediction_type='flow', expected one of"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid', expected one of"),
        ({"beta_start": None}, "lacks beta_start, expected the settings of a discrete"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True with prediction_type='eps"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas=.*, expected None"),
        ({"thresholding": True}, "thresholding=True, expected False"),
        ({"timestep_type": "continuous"}, "timestep_type='continuous', expected 'discrete'"),
    ],
)
def test_read_scheduler_refuses_another_diffusion(changes, message):
    with pytest.raises(ValueError, match=message) as refusal:
        read_scheduler(SD15 | changes)
    # A setting that makes a wrong network acceptable is never advised.
    assert "Use the scheduler of" not in str(refusal.value)


def test_read_scheduler_lets_clip_sample_be_where_the_pipeline_switches_it_off():
    clips = SD15 | {"clip_sample": True}
    for name in ("DDPMScheduler", "DDIMScheduler"):
        assert read_scheduler(clips | {"_class_name": name}).kind == "eps"
        # SDXL's pipeline lets them clip latents.
        with pytest.raises(ValueError, match="clip_sample=True, by which diffusers clips latents"):
            read_scheduler(clips | {"_class_name": name}, may_clip=True)
    # Euler's knows no such setting.
    euler = clips | {"_class_name": "EulerDiscreteScheduler"}
    assert read_scheduler(euler, may_clip=True).kind == "eps"


V_ZERO_SNR = SD15 | {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def test_read_scheduler_has_the_recorded_table_of_zero_terminal_snr():
    # alphas_cumprod of diffusers 0.42.1's DDIMScheduler and LCMScheduler of this config.
    recorded = {
        0: 0.9991499781608582,
        1: 0.9982334971427917,
        249: 0.654188871383667,
        499: 0.24235899746418,
        749: 0.03317145258188248,
        979: 8.578778943046927e-05,
        998: 1.9679633567193378e-07,
        999: 0.0,
    }
    alpha = np.asarray(read_scheduler(V_ZERO_SNR).schedule.alpha(jnp.asarray([*recorded])))
    np.testing.assert_allclose(alpha.astype(np.float64) ** 2, [*recorded.values()], rtol=1e-4)


@pytest.mark.parametrize("name", ["DDIMScheduler", "LCMScheduler"])
@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_read_scheduler_has_the_zero_snr_table_of_diffusers(betas, name):
    pytest.importorskip("torch")  # without it diffusers has no schedulers
    diffusers = pytest.importorskip("diffusers")
    config = V_ZERO_SNR | {"beta_schedule": betas}
    schedule, kind = read_scheduler(config)
    table = getattr(diffusers, name).from_config(config).alphas_cumprod.numpy()
    squared = np.asarray(schedule.alpha(jnp.arange(1000))).astype(np.float64) ** 2
    np.testing.assert_allclose(squared, table, rtol=1e-4, atol=1e-10)
    assert kind == "v" and squared[-1] == table[-1] == 0.0


def test_read_scheduler_refuses_a_flow_by_its_class():
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
    with pytest.raises(ValueError, match="FlowMatchEulerDiscreteScheduler lacks beta_schedule"):
        read_scheduler(config)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [7, 4, 1, 0]),
        ({"set_alpha_to_one": True}, [7, 4, 1, -1]),
        ({"steps_offset": 0}, [6, 3, 0]),
        ({"timestep_spacing": "trailing"}, [9, 6, 2, 0]),
        ({"timestep_spacing": "linspace"}, [9, 4, 0]),
    ],
)
def test_ddim_times_match_hand_computation(changes, expected):
    config = SD15 | {"num_train_timesteps": 10} | changes
    np.testing.assert_array_equal(ddim_times(config, 3), expected)


@pytest.mark.parametrize("offset", [1000, 10**12, -1, 0.5, "1"])
def test_read_scheduler_refuses_an_offset_beyond_the_schedule(offset):
    with pytest.raises(ValueError, match=r"steps_offset=.*, expected a time of the schedule"):
        read_scheduler(SD15 | {"steps_offset": offset})


def test_ddim_times_refuse_an_offset_that_leads_beyond_the_schedule():
    config = SD15 | {"num_train_timesteps": 10, "steps_offset": 4}
    with pytest.raises(ValueError, match=r"steps_offset=4 puts the first of 3 steps at 10"):
        ddim_times(config, 3)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim_times_are_those_of_diffusers(spacing):
    pytest.importorskip("torch")  # without it diffusers has no schedulers
    diffusers = pytest.importorskip("diffusers")
    config = SD15 | {"timestep_spacing": spacing}
    scheduler = diffusers.DDIMScheduler.from_config(config)
    for steps in (1, 4, 7, 30, 50):
        scheduler.set_timesteps(steps)
        ours = ddim_times(config, steps)[:steps]
        np.testing.assert_array_equal(ours, scheduler.timesteps.numpy(), err_msg=str(steps))


def test_ddim_times_refuse_an_unknown_spacing():
    with pytest.raises(ValueError, match="timestep_spacing='even', expected 'leading'"):
        ddim_times(SD15 | {"timestep_spacing": "even"}, 4)


def test_lcm_times_are_evenly_chosen_from_the_training_grid():
    # k = 100 / 5: the grid 19, 39, 59, 79, 99, of which entries 0 and 2 from the end.
    config = SD15 | {"num_train_timesteps": 100, "original_inference_steps": 5}
    np.testing.assert_array_equal(lcm_times(config, 2), [99, 59])


@pytest.mark.parametrize("times", [ddim_times, lcm_times])
def test_times_refuse_more_steps_than_there_are(times):
    with pytest.raises(ValueError, match="num_steps=1001 must be in 1.."):
        times(SD15, 1001)


@pytest.mark.parametrize("times", [(999, 749, 499, 249), (999, 499), (999,), (959, 639, 319)])
def test_student_scheduler_makes_lcm_choose_the_students_times(times):
    pytest.importorskip("torch")  # without it diffusers has no schedulers
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler.from_config(student_scheduler(SD15, times))
    scheduler.set_timesteps(len(times))
    assert tuple(scheduler.timesteps.tolist()) == times


def test_student_scheduler_lets_lcm_take_times_of_no_grid():
    pytest.importorskip("torch")  # without it diffusers has no schedulers
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler.from_config(student_scheduler(SD15, (399, 100)))
    scheduler.set_timesteps(timesteps=[399, 100])
    assert scheduler.timesteps.tolist() == [399, 100]


def test_student_scheduler_of_lcm_keeps_nothing_of_x_t():
    pytest.importorskip("torch")  # without it diffusers has no schedulers
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.LCMScheduler.from_config(student_scheduler(SD15, (999, 1)))
    skip, out = scheduler.get_scalings_for_boundary_condition_discrete(1)
    assert skip < 1e-8 and abs(out - 1) < 1e-8


@pytest.mark.parametrize("kind", ["lcm", "ddim"])
def test_student_scheduler_keeps_the_diffusion(kind):
    config = SD15 | {"prediction_type": "v_prediction", "beta_end": 0.02}
    made = student_scheduler(config, (999, 499), kind)
    assert read_scheduler(made).kind == "v"
    expected = read_scheduler(config).schedule.alpha(jnp.arange(1000))
    np.testing.assert_array_equal(read_scheduler(made).schedule.alpha(jnp.arange(1000)), expected)
    made = student_scheduler(V_ZERO_SNR, (999, 499), kind)
    expected = read_scheduler(V_ZERO_SNR).schedule.alpha(jnp.arange(1000))
    np.testing.assert_array_equal(read_scheduler(made).schedule.alpha(jnp.arange(1000)), expected)


def test_student_scheduler_for_ddim_samples_at_the_students_times():
    pytest.importorskip("torch")  # without it diffusers has no schedulers
    diffusers = pytest.importorskip("diffusers")
    made = student_scheduler(SD15, (999, 749, 499, 249), "ddim")
    scheduler = diffusers.DDIMScheduler.from_config(made)
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == [999, 749, 499, 249]
    with pytest.raises(ValueError, match=r"takes 1 steps at \[999\].*choose LCMScheduler"):
        student_scheduler(SD15, (399,), "ddim")


@pytest.mark.parametrize("times", [(), (249, 999), (1000,), (999, 0), (5, 5)])
def test_student_scheduler_refuses_times(times):
    with pytest.raises(ValueError, match=r"expected decreasing numbers in 1\.\.999"):
        student_scheduler(SD15, times)


def test_recorded_times_are_the_students():
    assert recorded_times(student_scheduler(SD15, (999, 249))) == (999, 249)
    assert recorded_times(SD15) is None


@pytest.mark.parametrize("times", [[], "999", [999.5], [249, 999], [1000], [True]])
def test_recorded_times_refuses_what_is_no_list_of_times(times):
    with pytest.raises(ValueError, match="expected decreasing times; export the student again"):
        recorded_times(SD15 | {"_student_timesteps": times})
