"""Checkpoints: staged beside, made durable, renamed once; the manifest, written last, says that one is whole."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .discovery import described, load_class
from .errors import InputError, RunFailed
from .hooks import blamed_on
from .plugin import Plugin, Settings, Stage
from .run import Run
from .rundir import RunDirectory, staged, write_atomically

if TYPE_CHECKING:
    from .config import Config

MANIFEST = "manifest.json"
TRAINING = "training"
STATE = "state.pt"
WEIGHTS = "weights.safetensors"
_KEPT = (type(None), bool, int, float, complex, str, bytes, Tensor, nn.Parameter, torch.Size, torch.dtype)
"""What the state of a plugin may hold, besides dicts, lists and tuples."""


def save(run: Run) -> Path:
    """Save the run as it stands after `run.step` steps; returns the checkpoint's folder."""
    target = run.directory.checkpoints / f"step-{run.step:06d}"
    if is_whole(target):
        return target
    if target.exists():
        set_aside(target)
    with staged(target) as folder:
        with run.engine.weights_to_use():
            run.hooks.save_checkpoint(run, folder)
        training = folder / TRAINING
        training.mkdir()
        weights = _own_weights(run)
        if weights:
            save_file(weights, training / WEIGHTS)
        _save_state(_state(run), training / STATE)
        _write_manifest(run, folder)
    _drop_surplus(run, target)
    return target


def export(run: Run) -> Path:
    """Write `final/`: the trained weights alone, in the form that pipelines load."""
    target = run.directory.final
    if target.exists():
        set_aside(target)
    with staged(target) as folder:
        with run.engine.weights_to_use():
            run.hooks.save_checkpoint(run, folder)
        _write_manifest(run, folder)
    return target


def latest(directory: RunDirectory) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and a sentence on each newer one that was passed over."""
    passed: list[str] = []
    for folder in reversed(in_order(directory)):
        reason = damage(folder)
        if reason is None:
            return folder, passed
        passed.append(f"{folder} is passed over: {reason}")
    return None, passed


def in_order(directory: RunDirectory) -> list[Path]:
    """The checkpoints of a run, whole or not, by step."""
    folders = [folder for folder in directory.checkpoints.glob("step-*") if folder.name[5:].isdecimal()]
    return sorted(folders, key=_step_of)


def set_newer_aside(directory: RunDirectory, checkpoint: Path) -> list[str]:
    """Rename the checkpoints that are newer than the one a run goes on from, for it will write its own; a sentence each."""
    newer = [folder for folder in in_order(directory) if _step_of(folder) > _step_of(checkpoint)]
    return [f"{folder} is newer and was set aside as {set_aside(folder).name}" for folder in newer]


def _step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint is there and undamaged."""
    return folder.is_dir() and damage(folder) is None


def damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None: its manifest names every file with size and hash."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (known["bytes"], known["blake2b"]) for name, known in manifest["files"].items()}
        whole = isinstance(manifest["config"], dict) and isinstance(manifest["settings"], dict) and f"{TRAINING}/{STATE}" in files
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        if (folder / "checkpoints").is_dir():
            return "it is a run directory; name one of the folders in its checkpoints"
        return "it has no readable manifest, so it was not finished"
    for name, (size, content) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size or file_hash(path) != content:
            return f"{name} is not what was written"
    return None


def file_hash(path: Path) -> str:
    """The content hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


FIXED = ("model", "datasets")
"""Tables that a resumed run must share with the checkpoint: with others it would be another run."""
FIXED_KEYS = {
    "run": ("seed", "batch_size", "gradient_accumulation", "weights", "precision"),
    "optimizer": ("type", "fused_backward_pass"),
}
"""Keys of other tables that it must share."""


def changes(folder: Path, config: Config) -> list[str]:
    """What the config says otherwise than the checkpoint, a sentence a key; InputError naming every key that may not change.

    A key counts as changed if it was written differently and means something else: a default that is spelt out is no
    change, nor is a folder that moved together with the config.
    """
    manifest: Mapping[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    written = [key for key, _, _ in _differences(manifest["config"], _as_json(config.data))]
    differing = [
        change
        for change in _differences(manifest["settings"], _as_json(config.settings()))
        if any(change[0][: len(key)] == key or key[: len(change[0])] == change[0] for key in written)
    ]
    fixed = [change for change in differing if _is_fixed(change[0], config)]
    if fixed:
        told = "; ".join(f"{'.'.join(key)} was {old!r} and is {new!r}" for key, old, new in fixed)
        raise InputError(f"cannot resume {folder} with this config: {told}. Put it back, or start anew with --resume never")
    return [f"changed since {folder.name}: {'.'.join(key)} was {old!r} and is now {new!r}" for key, old, new in differing]


def _is_fixed(key: tuple[str, ...], config: Config) -> bool:
    if key[0] == "plugins":
        return _is_fixed_plugin(key[1], config) and not _may_change(key[2:], config.plugins.get(key[1]))
    if key[0] == "model" and _may_change(key[1:], config.model):
        return False
    return key[0] in FIXED or key[-1] in FIXED_KEYS.get(key[0], ())


def _may_change(key: tuple[str, ...], settings: Settings | None) -> bool:
    return bool(key) and settings is not None and key[0] in settings.may_change


def _is_fixed_plugin(name: str, config: Config) -> bool:
    """Whether a plugin, in use now or before, has a part in the numbers: who says where weights lie, or looks on, may come and go."""
    try:
        kind = config.classes[name] if name in config.classes else load_class(name)
    except InputError:  # it is not installed any more, so nobody knows
        return True
    return kind.stage < Stage.PLACE


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _differences(before: Any, now: Any, key: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any, Any]]:
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(set(before) | set(now)):
            yield from _differences(before.get(name), now.get(name), (*key, name))
    elif before != now:
        yield key, before, now


def load(run: Run, folder: Path, data: str) -> list[str]:
    """Take up a run where a checkpoint left it: weights, optimizer, plugins, step; InputError if it does not fit the config.

    `data` identifies the samples of this start. Returns a sentence if they are not those of the checkpoint.
    """
    path = folder / TRAINING / STATE
    if not path.is_file():
        raise InputError(f"{folder} is no checkpoint of a run: {TRAINING}/{STATE} is missing")
    state = torch.load(path, map_location="cpu", weights_only=True)
    unknown = sorted(set(state["plugins"]) - {plugin.name for plugin in run.plugins})
    if unknown:
        raise InputError(f"{folder} holds state of plugin {', '.join(map(repr, unknown))}, which this config does not use")
    _load_weights(run, folder)
    run.engine.load_optimizer(state["optimizer"], run.config.optimizer)
    if run.engine.scaler is not None and state["scaler"]:
        run.engine.scaler.load_state_dict(state["scaler"])
    run.step, run.loss_average = state["step"], state["loss_average"]
    for plugin in run.plugins:
        with blamed_on(plugin.name, "load_state_dict"):
            plugin.load_state_dict(state["plugins"].get(plugin.name, {}))
    if state["data"] != data:
        return [f"the data changed since {folder.name}: from here on samples come in another order than they would have"]
    return []


def _own_weights(run: Run) -> dict[str, Tensor]:
    """What the run goes on from and no plugin may swap: trained parameters and the plugins' own modules.

    The denoiser of a full fine-tune is only among them if what lies in the pipeline's layout may be other weights, because
    a plugin wraps `save_checkpoint` or the optimizer trains elsewhere; otherwise that is read back.
    """
    weights = {f"extra.{name}": value.detach().contiguous() for name, value in run.model.extra.state_dict().items()}
    wrapped = any(kind == "wrapper" for _, kind in run.hooks.nesting("save_checkpoint"))
    if wrapped or run.engine.trains_elsewhere or not run.model.trains_base:
        trained = (pair for pair in run.model.denoiser.named_parameters() if pair[1].requires_grad)
        weights |= {f"denoiser.{name}": parameter.detach().contiguous() for name, parameter in trained}
    return weights


def _load_weights(run: Run, folder: Path) -> None:
    denoiser = run.model.denoiser
    file = folder / TRAINING / WEIGHTS
    saved = load_file(file) if file.is_file() else {}
    trained = {name.removeprefix("denoiser."): value for name, value in saved.items() if name.startswith("denoiser.")}
    if trained or not run.model.trains_base:
        _copy_parameters(denoiser, trained, folder)
    else:
        whole = type(denoiser).from_pretrained(folder / run.model.component)
        denoiser.load_state_dict(whole.state_dict())
    run.model.extra.load_state_dict({name.removeprefix("extra."): value for name, value in saved.items() if name.startswith("extra.")})


def _copy_parameters(denoiser: nn.Module, saved: Mapping[str, Tensor], folder: Path) -> None:
    parameters = {name: parameter for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
    if set(parameters) != set(saved):
        odd = sorted(set(parameters) ^ set(saved))
        raise InputError(f"{folder} does not fit this config: {odd[0]} and {len(odd) - 1} more weights are in only one of them")
    with torch.no_grad():
        for name, parameter in parameters.items():
            before, now = tuple(saved[name].shape), tuple(parameter.shape)
            if before != now:
                raise InputError(f"{folder} does not fit this config: {name} is {before} there and {now} here")
            parameter.copy_(saved[name])


def _state(run: Run) -> dict[str, Any]:
    return {
        "step": run.step,
        "loss_average": run.loss_average,
        "data": run.data_identity,
        "optimizer": run.engine.optimizer.state_dict(),
        "scaler": None if run.engine.scaler is None else run.engine.scaler.state_dict(),
        "plugins": {plugin.name: state for plugin in run.plugins if (state := _plugin_state(plugin))},
    }


def _plugin_state(plugin: Plugin[Any]) -> dict[str, Any]:
    """What a plugin wants kept; RunFailed if a checkpoint could not be read with it, while nothing is lost yet."""
    with blamed_on(plugin.name, "state_dict"):
        state = plugin.state_dict()
    odd = next(_unfit(state, "state_dict()"), None)
    if odd is not None or not isinstance(state, dict):
        found = odd or f"state_dict() is a {type(state).__name__}"
        raise RunFailed(f"{described(plugin.name)} cannot be saved: {found}; a checkpoint keeps a dict of tensors and plain values")
    return state


def _unfit(value: Any, where: str) -> Iterator[str]:
    """What in a state `torch.load` with `weights_only` would refuse."""
    if type(value) in (dict, OrderedDict):
        for key, part in value.items():
            yield from _unfit(key, f"a key of {where}")
            yield from _unfit(part, f"{where}[{key!r}]")
    elif type(value) in (list, tuple):
        for number, part in enumerate(value):
            yield from _unfit(part, f"{where}[{number}]")
    elif type(value) not in _KEPT:
        yield f"{where} is a {type(value).__name__}"


def _save_state(state: Mapping[str, Any], path: Path) -> None:
    try:
        with path.open("wb") as file:  # to a path, torch tells that the disk refuses but not why
            torch.save(state, file)
    except RuntimeError as error:
        reason = error.__context__
        raise reason if isinstance(reason, OSError) else OSError(f"{path.name}: {error}") from error


def _write_manifest(run: Run, folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    content = {
        "step": run.step,
        "run": run.directory.name,
        "config": run.config.data,
        "settings": run.config.settings(),
        "files": {path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "blake2b": file_hash(path)} for path in files},
    }
    write_atomically(folder / MANIFEST, json.dumps(content, indent=2, default=str) + "\n")


def set_aside(folder: Path) -> Path:
    """Rename a folder that is in the way, so that nothing is lost; returns its new name."""
    for number in itertools.count(1):
        free = folder.with_name(f"old-{number}-{folder.name}")
        if not free.exists():
            break
    return folder.rename(free)


def _drop_surplus(run: Run, newest: Path) -> None:
    keep = run.config.checkpoints.keep
    whole = [folder for folder in in_order(run.directory) if (folder / MANIFEST).is_file() and _step_of(folder) <= _step_of(newest)]
    for folder in whole[:-keep] if keep else ():
        try:
            rmtree(folder)
        except OSError as error:
            raise RunFailed(f"cannot remove the surplus checkpoint {folder}: {error.strerror}; the new one is whole") from error
