"""Checkpoints: staged beside, made durable, renamed once; the manifest, written last, says that one is whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .errors import InputError, RunFailed
from .run import Run
from .rundir import RunDirectory, staged, write_atomically

if TYPE_CHECKING:
    from .config import Config

MANIFEST = "manifest.json"
TRAINING = "training"
ADAPTED = "adapted.safetensors"


def save(run: Run) -> Path:
    """Save the run as it stands after `run.step` steps; returns the checkpoint's folder."""
    target = run.directory.checkpoints / f"step-{run.step:06d}"
    if is_whole(target):
        return target
    if target.exists():
        target.rename(_free_name(target))
    with staged(target) as folder:
        run.hooks.save_checkpoint(run, folder)
        training = folder / TRAINING
        training.mkdir()
        if not run.model.trains_base:
            save_file(adapted(run.model.denoiser), training / ADAPTED)
        torch.save(_state(run), training / "state.pt")
        _write_manifest(run, folder)
    _drop_surplus(run, target)
    return target


def export(run: Run) -> Path:
    """Write `final/`: the trained weights alone, in the form that pipelines load."""
    target = run.directory.final
    if target.exists():
        target.rename(_free_name(target))
    with staged(target) as folder:
        run.hooks.save_checkpoint(run, folder)
        _write_manifest(run, folder)
    return target


def adapted(denoiser: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters that adapters put into the denoiser."""
    return {name: parameter.detach().contiguous() for name, parameter in denoiser.named_parameters() if parameter.requires_grad}


def latest(directory: RunDirectory) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a sentence on each newer one that was passed over."""
    passed: list[str] = []
    for folder in sorted(directory.checkpoints.glob("step-*"), reverse=True):
        reason = damage(folder)
        if reason is None:
            return folder, passed
        passed.append(f"{folder} is passed over: {reason}")
    return None, passed


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is there and undamaged."""
    return folder.is_dir() and damage(folder) is None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: its manifest names every file with size and hash."""
    try:
        files: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return "it has no readable manifest, so it was not finished"
    for name, known in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != known["bytes"] or file_hash(path) != known["blake2b"]:
            return f"{name} is not what was written"
    return None


def file_hash(path: Path) -> str:
    """The content hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


FIXED = ("model", "plugins", "datasets")
"""Tables that a resumed run must share with the checkpoint: with others it would be another run."""
FIXED_KEYS = {
    "run": ("seed", "batch_size", "gradient_accumulation", "weights", "precision"),
    "optimizer": ("type",),
}


def changes(folder: Path, config: Config) -> list[str]:
    """What the config says otherwise than the checkpoint, a sentence a key; InputError naming every key that may not change."""
    before: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["config"]
    now = json.loads(json.dumps(config.data, default=str))
    differing = [(key, old, new) for key, old, new in _differences(before, now)]
    fixed = [
        change for change in differing if change[0][0] in FIXED or (change[0][1:2] and change[0][1] in FIXED_KEYS.get(change[0][0], ()))
    ]
    if fixed:
        told = "; ".join(f"{'.'.join(key)} was {old!r} and is {new!r}" for key, old, new in fixed)
        raise InputError(f"cannot resume {folder} with this config: {told}. Put it back, or start anew with --resume never")
    return [f"changed since {folder.name}: {'.'.join(key)} was {old!r} and is now {new!r}" for key, old, new in differing]


def _differences(before: Any, now: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(set(before) | set(now)):
            yield from _differences(before.get(name), now.get(name), (*key, name))
    elif before != now:
        yield key, before, now


def load(run: Run, folder: Path) -> None:
    """Take up a run where a checkpoint left it: weights, optimizer, plugins, step; InputError if it does not fit the config."""
    path = folder / TRAINING / "state.pt"
    if not path.is_file():
        raise InputError(f"{folder} is no checkpoint of a run: {TRAINING}/state.pt is missing")
    state = torch.load(path, map_location="cpu", weights_only=True)
    unknown = sorted(set(state["plugins"]) - {plugin.name for plugin in run.plugins})
    if unknown:
        raise InputError(f"{folder} holds state of plugin {', '.join(map(repr, unknown))}, which this config does not use")
    denoiser = run.model.denoiser
    if run.model.trains_base:
        saved = type(denoiser).from_pretrained(folder / "transformer")
        denoiser.load_state_dict(saved.state_dict())
    else:
        _load_adapted(denoiser, load_file(folder / TRAINING / ADAPTED), folder)
    for name, module in run.model.extra.items():
        module.load_state_dict(load_file(folder / "extra" / f"{name}.safetensors"))
    run.engine.optimizer.load_state_dict(state["optimizer"])
    if run.engine.scaler is not None and state["scaler"]:
        run.engine.scaler.load_state_dict(state["scaler"])
    for plugin in run.plugins:
        plugin.load_state_dict(state["plugins"].get(plugin.name, {}))
    run.step = state["step"]


def _load_adapted(denoiser: nn.Module, saved: Mapping[str, Tensor], folder: Path) -> None:
    parameters = {name: parameter for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
    if set(parameters) != set(saved):
        odd = sorted(set(parameters) ^ set(saved))
        raise InputError(f"the adapter of {folder} does not fit this config: {odd[0]} and {len(odd) - 1} more are in only one of them")
    with torch.no_grad():
        for name, parameter in parameters.items():
            before, now = tuple(saved[name].shape), tuple(parameter.shape)
            if before != now:
                raise InputError(f"the adapter of {folder} does not fit this config: {name} is {before} there and {now} here")
            parameter.copy_(saved[name])


def _state(run: Run) -> dict[str, Any]:
    return {
        "step": run.step,
        "optimizer": run.engine.optimizer.state_dict(),
        "scaler": None if run.engine.scaler is None else run.engine.scaler.state_dict(),
        "plugins": {plugin.name: state for plugin in run.plugins if (state := plugin.state_dict())},
    }


def _write_manifest(run: Run, folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "step": run.step,
        "run": run.directory.name,
        "config": run.config.data,
        "files": {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": file_hash(path)} for path in files},
    }
    write_atomically(folder / MANIFEST, json.dumps(content, indent=2, default=str) + "\n")


def _free_name(target: Path) -> Path:
    number = 1
    while (free := target.with_name(f"old-{number}-{target.name}")).exists():
        number += 1
    return free


def _drop_surplus(run: Run, newest: Path) -> None:
    keep = run.config.checkpoints.keep
    whole = [folder for folder in sorted(run.directory.checkpoints.glob("step-*")) if (folder / MANIFEST).is_file() and folder <= newest]
    for folder in whole[:-keep] if keep else ():
        try:
            rmtree(folder)
        except OSError as error:
            raise RunFailed(f"cannot remove the surplus checkpoint {folder}: {error.strerror}; the new one is whole") from error
