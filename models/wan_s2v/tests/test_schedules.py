"""The schedules to sample with, against Wan's and diffusers' own numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from tunesmith import InputError
from tunesmith_wan_s2v.schedules import make_schedule, wan_sigmas

from .goldens import facts, tensors

GRIDS = [(solver, key) for solver in ("wan_unipc", "diffusers_unipc") for key in facts("sampler")[solver]]
HUB_CONFIG = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 5.0}


def begun(scheduler: Any, steps: int, wan: bool) -> Any:
    if wan:
        scheduler.set_timesteps(sigmas=wan_sigmas(steps))
    else:
        scheduler.set_timesteps(steps)
    return scheduler


@pytest.mark.parametrize(("solver", "key"), GRIDS)
def test_timesteps_and_sigmas_are_those_of_the_reference(solver: str, key: str) -> None:
    steps, shift = int(key.split("_")[0]), float(key.split("_")[1])
    scheduler = begun(make_schedule(shift=shift), steps, wan=solver == "wan_unipc")
    known = facts("sampler")[solver][key]
    assert scheduler.timesteps.tolist() == known["timesteps"]
    assert (scheduler.sigmas - torch.tensor(known["sigmas"])).abs().max() < 1e-6


@pytest.mark.parametrize("name", facts("sampler")["rollouts"])
def test_trajectories_are_those_of_the_reference(name: str) -> None:
    known, toy = facts("sampler")["rollouts"][name], tensors("sampler")
    scheduler = make_schedule("euler" if known["solver"] == "euler" else "unipc", known["shift"])
    begun(scheduler, known["steps"], wan=known["solver"] == "wan")

    def velocity(sample: Tensor, timestep: Tensor, bias: str) -> Tensor:
        return sample @ toy["A"].T + toy[bias] + timestep / 1000 * toy["c"]

    sample, trajectory = toy["x_init"], []
    for timestep in scheduler.timesteps:
        guided = velocity(sample, timestep, "b")
        if known["guidance"] != 1:
            without = velocity(sample, timestep, "b_uncond")
            guided = without + known["guidance"] * (guided - without)
        sample = scheduler.step(guided, timestep, sample, return_dict=False)[0]
        trajectory.append(sample)
    difference = torch.stack(trajectory) - toy[f"{name}.trajectory"]
    assert difference.norm() / toy[f"{name}.trajectory"].norm() < 1e-4


def test_unipc_of_order_2_at_shift_3_is_the_default_whatever_shift_the_checkpoint_says() -> None:
    for scheduler in (make_schedule(), make_schedule(config=HUB_CONFIG)):
        assert isinstance(scheduler, UniPCMultistepScheduler)
        config = scheduler.config
        assert (config.flow_shift, config.solver_order, config.solver_type, config.predict_x0) == (3.0, 2, "bh2", True)
    assert make_schedule(shift=5.0, config=HUB_CONFIG).config.flow_shift == 5.0


def test_euler_takes_the_shift() -> None:
    scheduler = make_schedule("euler", config=HUB_CONFIG)
    assert isinstance(scheduler, FlowMatchEulerDiscreteScheduler)
    assert scheduler.config.shift == 3.0
    own = make_schedule("FlowMatchEulerDiscreteScheduler", 2.0, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0})
    assert own.config.shift == 2.0


def beta_distribution(values: Tensor) -> Tensor:
    """The cumulative distribution of Beta(0.6, 0.6), by quadrature over the angle whose squared sine is the value."""
    angles = torch.linspace(0, torch.pi / 2, 200_001, dtype=torch.float64)
    density = (angles.sin() * angles.cos()).clamp(min=0) ** 0.2
    cumulative = torch.cat([torch.zeros(1), torch.cumulative_trapezoid(density, angles)])
    found = torch.searchsorted(angles, values.double().clamp(0, 1).sqrt().asin())
    return cumulative[found.clamp(max=len(angles) - 1)] / cumulative[-1]


def test_beta_sigmas_are_quantiles_of_a_beta_distribution() -> None:
    scheduler, euler = make_schedule("beta"), make_schedule("euler")
    scheduler.set_timesteps(6)
    euler.set_timesteps(6)
    first, last = euler.sigmas[0], euler.sigmas[5]
    shares = beta_distribution((scheduler.sigmas[:6] - last) / (first - last))
    assert shares.tolist() == pytest.approx([1 - step / 5 for step in range(6)], abs=1e-4)
    assert scheduler.sigmas[6] == 0


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean UniPCMultistepScheduler"):
        make_schedule("UniPCMultistep")
    with pytest.raises(InputError, match="did you mean unipc\\? allowed are unipc, euler, beta, FlowMatchEuler"):
        make_schedule("unipcc")
