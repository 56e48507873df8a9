"""Learning-rate schedules against closed forms and torch's own schedulers."""

import math

import pytest
import torch

from tunesmith.config.tables import OptimizerTable
from tunesmith.schedules import ScheduledWeight, learning_rate_factor

SCHEDULES = ["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"]


def factors(total, **settings):
    table = OptimizerTable(**settings)
    return [learning_rate_factor(step, total, table) for step in range(total)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_schedule_warms_up_linearly_to_one(schedule):
    values = factors(100, schedule=schedule, warmup=9)
    assert values[:9] == pytest.approx([0.1 * (step + 1) for step in range(9)])
    assert values[9] == pytest.approx(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES[1:])
def test_every_falling_schedule_ends_where_it_says(schedule):
    assert factors(50, schedule=schedule)[-1] == pytest.approx(0.0, abs=1e-12)
    assert factors(50, schedule=schedule, end=0.2)[-1] == pytest.approx(0.2)


def test_cosine_equals_torchs_annealing():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=39)
    for value in factors(40, schedule="cosine"):
        assert value == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        reference.step()


def test_polynomial_of_power_two_is_the_square_of_linear():
    linear, square = factors(30, schedule="linear"), factors(30, schedule="polynomial", power=2.0)
    assert square == pytest.approx([value**2 for value in linear])


def test_restarts_begin_again_at_one():
    values = factors(101, schedule="cosine_with_restarts", cycles=2)
    assert values[0] == values[50] == pytest.approx(1.0)
    assert values[25] == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_constant_stays_at_one_and_a_run_of_one_step_works():
    assert factors(5, schedule="constant") == [1.0] * 5
    assert factors(1, schedule="cosine") == [1.0]


def test_a_weight_rises_stays_falls_and_is_cut_off_when_it_says() -> None:
    """Rises in `warmup_steps`, then w_end + (w - w_end) * f, f falling from 1 to 0 until `decay_steps`, and 0 from `cutoff_step` on."""
    always = {"weight": 0.5, "warmup_steps": 10, "cutoff_step": 60}
    falling = {"decay_steps": 30, "end_weight": 0.1}
    own = {"constant": {}, "linear": falling, "cosine": falling, "polynomial": {**falling, "power": 2.0}}
    middle = {"constant": 0.5, "linear": 0.3, "cosine": 0.3, "polynomial": 0.1 + 0.4 * 0.25}
    for schedule, half in middle.items():
        weight = ScheduledWeight.model_validate({**always, **own[schedule], "schedule": schedule})
        end = 0.5 if schedule == "constant" else 0.1
        told = [weight.weight_at(step, 1000) for step in (0, 5, 10, 20, 30, 59, 60, 999)]
        assert told == pytest.approx([0.0, 0.25, 0.5, half, end, end, 0.0, 0.0])
    unending = ScheduledWeight(schedule="linear")
    assert [unending.weight_at(step, 100) for step in (0, 25, 100)] == pytest.approx([1.0, 0.75, 0.0])


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"end_weight": 0.2}, "`end_weight` is of a weight that changes"),
        ({"decay_steps": 9}, "`decay_steps` is of a weight that changes"),
        ({"schedule": "cosine", "power": 3.0}, "`power` is that of"),
        ({"schedule": "linear", "warmup_steps": 10, "decay_steps": 10}, "not over at decay_steps = 10"),
        ({"warmup_steps": 50, "cutoff_step": 5}, "not over at cutoff_step = 5"),
    ],
)
def test_settings_of_a_weight_that_would_do_nothing_are_refused(settings, told) -> None:
    with pytest.raises(ValueError, match=told):
        ScheduledWeight.model_validate(settings)
