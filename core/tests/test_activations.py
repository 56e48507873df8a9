"""Which blocks are computed again in backward, and that the numbers stay."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tunesmith import Model, Run, TrunkModule, activations
from tunesmith.activations import checkpoint_blocks, pinned_copy, saved_tensors


class Counted(nn.Module):
    """A layer that counts its forwards."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(4, 4), 0

    def forward(self, hidden: Tensor) -> Tensor:
        self.calls += 1
        out: Tensor = self.linear(hidden).tanh()
        return out


class Trunk(nn.Module):
    """Five blocks, with something between the second and the third, called as diffusers does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([Counted() for _ in range(6)])
        self.call: Any = lambda module, *arguments: module(*arguments)

    def enable_gradient_checkpointing(self, call: Any = None) -> None:
        self.call = call or partial(checkpoint, use_reentrant=False)

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = self.call(layer, hidden)
        return hidden


class Loaded:
    """As much of a model as is asked for."""

    def __init__(self) -> None:
        self.denoiser = Trunk()

    def trunk(self) -> list[TrunkModule]:
        return [TrunkModule(str(number), layer, is_block=number != 2) for number, layer in enumerate(self.denoiser.layers)]


def gradients(every: int) -> tuple[list[int], list[Tensor]]:
    model = Loaded()
    if every:
        checkpoint_blocks(cast(Model, model), every)
    model.denoiser(torch.linspace(-1, 1, 8).reshape(2, 4)).square().sum().backward()
    calls = [cast(Counted, layer).calls for layer in model.denoiser.layers]
    return calls, [cast(Tensor, parameter.grad) for parameter in model.denoiser.parameters()]


@pytest.mark.parametrize(
    ("every", "calls"), [(1, [2, 2, 2, 2, 2, 2]), (2, [2, 1, 1, 2, 1, 2]), (3, [2, 1, 1, 1, 2, 1]), (9, [2, 1, 1, 1, 1, 1])]
)
def test_every_so_many_th_block_is_computed_again_and_gradients_stay(every: int, calls: list[int]) -> None:
    plain_calls, plain = gradients(0)
    assert plain_calls == [1] * 6
    found, again = gradients(every)
    assert found == calls
    assert all(torch.equal(one, other) for one, other in zip(plain, again, strict=True))


def test_what_moves_off_the_device_are_activations_and_no_weights() -> None:
    """A frozen layer and trained ones; of a trained weight that is seen without its gradient a copy is kept as it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    model[0].requires_grad_(False)
    last, states = cast(nn.Linear, model[2]), torch.randn(2, 4, requires_grad=True)
    moved: list[Tensor] = []

    def away(tensor: Tensor) -> Tensor:
        moved.append(tensor)
        return tensor.clone()

    def loss() -> Tensor:
        hidden: Tensor = model(states)
        return (hidden * last.weight.detach().mean(1)).square().sum() + (states[:, :3] * last.weight.detach()[:, 3]).sum()

    settings = SimpleNamespace(run=SimpleNamespace(activations="cpu"))
    run = SimpleNamespace(config=settings, is_rehearsal=True, host_copy=away, device_copy=torch.clone)
    with saved_tensors(cast(Run, run)):
        total = loss()
    assert {(2, 5), (3,)} <= {tuple(tensor.shape) for tensor in moved}
    weights = {weight.data_ptr() for weight in model.parameters()}
    assert all(not tensor.requires_grad for tensor in moved if tensor.untyped_storage().data_ptr() in weights)
    assert not {(5, 4), (4, 5), (5, 3), (3, 5), (5,)} & {tuple(tensor.shape) for tensor in moved}
    trained = [states, *model[1].parameters(), *last.parameters()]
    assert all(map(torch.equal, torch.autograd.grad(total, trained), torch.autograd.grad(loss(), trained)))


LAYOUTS = {
    "plain": torch.arange(24.0).reshape(2, 3, 4),
    "channels last": torch.arange(48.0).reshape(2, 3, 2, 4).permute(0, 3, 1, 2),
    "one half of two": torch.arange(48.0).reshape(2, 3, 8)[:, :, 4:],
    "every second": torch.arange(48.0).reshape(4, 3, 4)[1::2],
    "the same for all": torch.arange(8.0).reshape(2, 1, 4).expand(2, 3, 4),
    "the same for all of a half": torch.arange(16.0).reshape(2, 1, 8)[:, :, :4].expand(2, 3, 4),
    "windows that overlap": torch.arange(24.0).unfold(0, 4, 2),
    "conjugated": torch.complex(torch.arange(24.0), torch.ones(24)).reshape(2, 3, 4).transpose(1, 2).conj(),
    "a number": torch.tensor(3.0),
    "nothing": torch.empty(2, 0, 4),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_has_been_moved_comes_back_as_it_lay(name: str) -> None:
    """But for windows that overlap, which would have to be written twice; where one lies for all there is one on the machine."""
    tensor, homes = LAYOUTS[name], []

    def home(tensor: Tensor) -> Tensor:
        homes.append(pinned_copy(tensor))
        return homes[-1]

    settings = SimpleNamespace(run=SimpleNamespace(activations="cpu"))
    run = SimpleNamespace(config=settings, is_rehearsal=True, host_copy=home, device_copy=Tensor.clone)
    states = tensor.detach().requires_grad_()
    with saved_tensors(cast(Run, run)):
        kept: Any = states.square()
    back = kept.grad_fn._saved_self
    assert torch.equal(back, tensor)
    assert back.data_ptr() != tensor.data_ptr() or not tensor.numel()
    assert back.stride() == (torch.empty(tensor.shape).stride() if name == "windows that overlap" else tensor.stride())
    assert [one.numel() for one in homes] == [tensor.numel() // (3 if "for all" in name else 1)]
    assert not homes[0].requires_grad


@pytest.mark.parametrize(("device", "where", "moves"), [("meta", "cpu", True), ("meta", "device", False), ("cpu", "cpu", False)])
def test_of_a_device_they_move_into_pinned_memory(monkeypatch: pytest.MonkeyPatch, device: str, where: str, moves: bool) -> None:
    """What is on the machine already, a number or an index, stays there."""
    sent: list[Tensor] = []

    def send(tensor: Tensor) -> Tensor:
        sent.append(tensor)
        return tensor

    monkeypatch.setattr(activations, "pinned_copy", send)
    config = SimpleNamespace(run=SimpleNamespace(activations=where))
    run = SimpleNamespace(config=config, is_rehearsal=False, device=torch.device(device), device_copy=torch.clone)
    with saved_tensors(cast(Run, run)):
        torch.ones(3, requires_grad=True, device=run.device).exp().sum().backward()
        torch.ones(3, requires_grad=True).exp().sum().backward()
    assert len(sent) == moves
    assert all(tensor.device == run.device for tensor in sent)
