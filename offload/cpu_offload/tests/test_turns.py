"""How networks and states leave and come back: what is interrupted, freed, shared, and called by methods of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import bitsandbytes.functional as bnb
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderKLWan, DiffusionPipeline, SanaImageToVideoPipeline
from torch import Tensor, nn

from tunesmith import PipelineModel, Run, RunFailed
from tunesmith_cpu_offload import CpuOffload, CpuOffloadSettings, moving, turns
from tunesmith_cpu_offload.moving import state_away
from tunesmith_cpu_offload.turns import Turns
from tunesmith_sana_video.first_frame import FirstFramePipeline

from .pretended import Device

CPU, META = torch.device("cpu"), torch.device("meta")


def run_on(device: torch.device, *, is_rehearsal: bool = False) -> Run:
    """As much of a run as moves things; in a rehearsal what is on the machine takes nothing."""
    run = SimpleNamespace(device=device, is_rehearsal=is_rehearsal)
    moved = cast(Run, run)
    run.host_copy, run.device_copy = partial(Run.host_copy, moved), partial(Run.device_copy, moved)
    return moved


class Coder(nn.Module):
    """A network that is called by a method of its own, which nothing decorates."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))

    def encode(self, values: Tensor) -> Tensor:
        encoded: Tensor = self.layers(values)
        return encoded


def num_bytes(network: nn.Module) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in network.parameters())


def test_in_a_rehearsal_what_is_away_takes_nothing_and_comes_back_in_full() -> None:
    first, second = Coder(), Coder()
    whole, parameters = num_bytes(first), [*first.parameters(), *second.parameters()]
    rotation = Turns(run_on(CPU, is_rehearsal=True))
    for network in (first, second):
        rotation.join(network)
    assert max(num_bytes(first), num_bytes(second)) < whole / 100
    assert first.encode(torch.zeros(3, 64)).shape == (3, 64)
    assert (num_bytes(first), num_bytes(second) < whole / 100) == (whole, True)
    assert second.encode(torch.zeros(3, 64)).shape == (3, 64)
    assert (num_bytes(first) < whole / 100, num_bytes(second)) == (True, whole)
    assert all(now is before for now, before in zip([*first.parameters(), *second.parameters()], parameters, strict=True))


def test_in_a_rehearsal_the_state_of_an_optimizer_takes_nothing_while_it_is_away() -> None:
    state: dict[Any, Any] = {0: {"moment": torch.zeros(64, 64), "factors": [torch.zeros(64)]}}
    with state_away([state], run_on(CPU, is_rehearsal=True)):
        assert state[0]["moment"].shape == (64, 64)
        assert state[0]["moment"].untyped_storage().nbytes() == state[0]["factors"][0].untyped_storage().nbytes() == 4
    assert state[0]["factors"][0].untyped_storage().nbytes() == 4 * 64
    assert state[0]["moment"].untyped_storage().nbytes() == 4 * 64 * 64


def test_a_network_is_freed_when_whoever_loaded_it_lets_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its count of references: the collector of cycles may come long after the memory is needed."""
    gone: list[str] = []
    monkeypatch.setattr(Coder, "__del__", lambda self: gone.append("coder"), raising=False)
    rotation, network = Turns(run_on(CPU)), Coder()
    rotation.join(network)
    network.encode(torch.zeros(1, 64))
    del network
    assert gone == ["coder"]
    rotation.rest()


def test_a_move_that_was_interrupted_is_completed_before_anybody_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []
    trouble: list[str] = []
    names: dict[nn.Module, str] = {}

    def move(what: str) -> Callable[[nn.Module, torch.device], None]:
        def act(network: nn.Module, device: torch.device) -> None:
            log.append(what + names[network])
            if log[-1] in trouble:
                trouble.remove(log[-1])
                raise KeyboardInterrupt

        return act

    monkeypatch.setattr(turns, "send", move("-"))
    monkeypatch.setattr(turns, "bring", move("+"))
    rotation, first, second = Turns(run_on(CPU)), Coder(), Coder()
    names |= {first: "a", second: "b"}
    rotation.join(first)
    rotation.join(second)
    for trouble_at, then, expected in (("+a", first, ["+a", "+a"]), ("-a", first, ["-a", "+a"]), ("-a", second, ["-a", "-a", "+b"])):
        trouble.append(trouble_at)
        log.clear()
        with pytest.raises(KeyboardInterrupt):
            rotation.come(first if trouble_at == "+a" else second)
        rotation.come(then)
        assert log == expected


def test_weights_that_autocast_has_cast_leave_with_the_network() -> None:
    """A copy of weights from before is not used for what they are now."""
    rotation, network, other = Turns(run_on(CPU)), Coder(), Coder()
    values = torch.ones(1, 64)
    with rotation.joined(network), torch.autocast("cpu", torch.bfloat16):
        network.encode(values)
        rotation.join(other)
        other.encode(values)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.zero_()
        assert not network.encode(values).any()


def test_what_is_in_several_places_of_a_state_is_one_tensor_afterwards_and_paged_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, paged = torch.ones(3), torch.ones(2)
    assert "is_paged" in bnb.get_paged.__code__.co_names  # what bitsandbytes marks such tensors by
    paged.is_paged = True  # type: ignore[attr-defined]
    state: dict[Any, Any] = {0: {"map": shared, "list": [torch.zeros(1)]}, 1: {"map": shared, "paged": paged, "step": 3}}
    monkeypatch.setattr("tunesmith_cpu_offload.moving.sent", lambda tensor, run: tensor.clone())
    monkeypatch.setattr("tunesmith_cpu_offload.moving.brought", lambda tensor, run: tensor.clone())
    with state_away([state], run_on(CPU)):
        assert state[0]["map"] is not shared
    assert state[0]["map"] is state[1]["map"]
    assert torch.equal(state[0]["map"], shared)
    assert (state[1]["paged"], state[1]["step"]) == (paged, 3)


def test_an_interrupted_validation_leaves_the_model_and_the_state_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    monkeypatch.setattr(turns, "send", lambda network, run: moved.append("-"))
    monkeypatch.setattr(turns, "bring", lambda network, run: moved.append("+"))
    device = Device()
    monkeypatch.setattr(moving, "sent", device.sent)
    monkeypatch.setattr(moving, "brought", device.brought)
    denoiser, decoder, state = Coder(), Coder(), {0: {"moment": torch.ones(3)}}
    before = denoiser.__dict__.keys() | {"forward"}
    engine = SimpleNamespace(optimizer_states=[state])
    run = cast(
        Run, SimpleNamespace(previews=["one"], engine=engine, device=CPU, is_rehearsal=False, model=SimpleNamespace(denoiser=denoiser))
    )
    plugin = CpuOffload("cpu_offload", CpuOffloadSettings())
    validation = plugin.validate(run, report=cast(Any, None))
    next(validation)
    plugin.turns(run).join(decoder)
    decoder.encode(torch.zeros(1, 64))
    assert moved == ["-", "-", "+"]
    assert state[0]["moment"].isnan().all()
    with pytest.raises(KeyboardInterrupt):
        validation.throw(KeyboardInterrupt())
    assert moved == ["-", "-", "+", "-", "+"]
    assert torch.equal(state[0]["moment"], torch.ones(3))
    assert denoiser.__dict__.keys() <= before
    assert not any(module._forward_pre_hooks for module in denoiser.modules())


def test_where_a_move_gives_weights_new_objects_the_run_does_not_train_others_unseen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
    rotation, network = Turns(run_on(CPU)), Coder()
    with pytest.raises(RunFailed, match="set denoiser = false"), rotation.joined(network):
        rotation.rest()


class Recorder(DiffusionPipeline):  # type: ignore[misc]
    """A pipeline that gives back what it is called with."""

    def __init__(self, transformer: nn.Module, vae: nn.Module) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae)

    def __call__(self, **given: Any) -> tuple[dict[str, Any]]:
        return (given,)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """Nothing is really moved; networks that came."""
    came: list[nn.Module] = []
    monkeypatch.setattr(turns, "send", lambda network, run: None)
    monkeypatch.setattr(turns, "bring", lambda network, run: came.append(network))
    return came


def test_what_a_pipeline_is_given_is_for_the_device_also_when_all_its_networks_are_away(still: list[nn.Module]) -> None:
    transformer, vae = (AutoencoderKL(block_out_channels=(32,), latent_channels=1) for _ in range(2))
    rotation, pipeline = Turns(run_on(META)), Recorder(transformer, vae)
    family = SimpleNamespace(require_size=lambda width, height: None, scheduler=lambda name: None)
    model = SimpleNamespace(family=family, sampling_arguments=lambda request, device: {"device": device})
    request = SimpleNamespace(width=8, height=8, guidance=1.0, steps=1, seed=0, scheduler=None)
    rotation.join(vae)
    with rotation.joined(transformer):
        rotation.rest()
        assert PipelineModel.call_pipeline(cast(Any, model), pipeline, cast(Any, request), "pt")["device"] == META
        vae.encode(torch.zeros(1, 3, 8, 8))
        assert still == [vae]


def test_a_first_frame_is_encoded_in_its_own_precision_also_when_the_autoencoder_is_away(
    still: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the frame is encoded autocast is off; what is on elsewhere stays as it is."""
    told: list[bool] = []
    monkeypatch.setattr(
        SanaImageToVideoPipeline, "prepare_latents", lambda self: told.extend(map(torch.is_autocast_enabled, ("cuda", "cpu")))
    )
    vae = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False])
    pipeline = FirstFramePipeline(tokenizer=None, text_encoder=None, vae=vae, transformer=None, scheduler=None)
    Turns(run_on(torch.device("cuda"))).join(vae)
    with torch.autocast("cpu", torch.bfloat16):
        pipeline.prepare_latents()
    assert told == [False, True]
