"""Parts of a checkpoint as files on disk, out of a local folder or the Hub; every failure is told to the user."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from .errors import InputError
from .quiet import without_progress_bars

_CONNECT_SECONDS = 5
_ANEW = "copy or download both from the same checkpoint"
_SUFFIX = re.compile(r"\.(fp16|bf16|fp32)[.-]")


class UnreachableError(InputError):
    """A file is neither in the local cache nor can the Hub be asked for it."""


@dataclass(frozen=True)
class Origin:
    """Where a part comes from: a local folder, or a Hub id at a revision."""

    where: str
    revision: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether it is a folder on this machine."""
        return Path(self.where).is_dir()

    def __str__(self) -> str:
        return f"{self.where} at {self.revision}" if self.revision else self.where


@dataclass(frozen=True)
class Component:
    """One part of a checkpoint on disk: the folder and file suffix for `from_pretrained`, and the files it reads."""

    folder: Path
    suffix: str | None
    files: tuple[Path, ...]


def read_json(origin: Origin, names: Sequence[str]) -> dict[str, Any]:
    """The first JSON object that exists among these files of the origin.

    Raises InputError if there is none or it cannot be read, UnreachableError if only the network could tell.
    """
    for name in names:
        path = _local_file(origin, name) if origin.is_local else _hub_file(origin, name)
        if path is not None:
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise InputError(f"{path} is no JSON: {error}") from None
            if not isinstance(found, dict):
                raise InputError(f"{path} holds a {type(found).__name__}; a component's configuration is a JSON object")
            return found
    layout = "a diffusers pipeline's" if any("/" in name for name in names) else "a model's"
    raise InputError(f"{origin} has no {' and no '.join(names)}; it must be laid out as {layout} `save_pretrained` writes it")


def fetch_weights(origin: Origin, subfolder: str, suffix: str | None, *, or_root: bool = False) -> Component:
    """The configuration and safetensors files of one part, downloaded if they are not there yet.

    Files saved under `suffix` (`fp16`, `bf16`) are taken where the part has them, else those without one. With
    `or_root` a part that lies at the top of its origin is found too. Raises InputError if there are no weights.
    """
    for wanted in dict.fromkeys((suffix, None)):
        allow = ["*.json", f"*.{wanted}*.safetensors" if wanted else "*.safetensors"]
        ignore = [] if wanted else ["*.fp16*", "*.bf16*"]
        folder = _fetch(origin, subfolder, allow, ignore, or_root)
        weights = [file for file in sorted(folder.glob("*.safetensors")) if _suffix_of(file) == wanted]
        if weights:
            _require_shards(folder, weights)
            return Component(folder, wanted, (folder / "config.json", *weights))
    place = f"{subfolder}/ or at its root" if or_root else f"{subfolder}/"
    raise InputError(f"{origin} has no safetensors weights in {place}; Tunesmith loads no other format")


def fetch_tokenizer(origin: Origin, *, or_root: bool = False) -> Component:
    """The tokenizer's files, downloaded if they are not there yet."""
    return fetch_files(origin, "tokenizer", ("tokenizer", "special_tokens", "added_tokens"), or_root=or_root)


def fetch_files(origin: Origin, subfolder: str, prefixes: tuple[str, ...], *, or_root: bool = False) -> Component:
    """The files of a part without weights whose names begin so, downloaded if they are not there yet; InputError if there is none."""
    folder = _fetch(origin, subfolder, [f"{prefix}*" for prefix in prefixes], [], or_root)
    files = tuple(file for file in sorted(folder.iterdir()) if file.name.startswith(prefixes))
    if not files:
        raise InputError(f"{origin} has no {' or '.join(prefixes)} files in {subfolder}/")
    return Component(folder, None, files)


def load_frozen(kind: type[nn.Module], component: Component, dtype: torch.dtype, **options: Any) -> Any:
    """A network of diffusers or transformers by its own `from_pretrained`, frozen and in evaluation mode.

    Raises InputError for files that are damaged or cannot be read, and for tensors of other shapes than the network's.
    """
    _require_readable(component)
    loader: Any = kind
    sources = {"variant": component.suffix, "use_safetensors": True, **options}
    with without_progress_bars():
        if not issubclass(kind, PreTrainedModel):
            network = _loaded_by_diffusers(loader, component, torch_dtype=dtype, **sources)
        else:  # transformers says what does not match only of what it is told to leave out
            told = {"ignore_mismatched_sizes": True, "output_loading_info": True}
            network, info = loader.from_pretrained(component.folder, dtype=dtype, **told, **sources)
            _require_shapes(component, info["mismatched_keys"])
    return network.requires_grad_(False).eval()


def local_tokenizer(origin: Origin, *, or_root: bool = False) -> Path | None:
    """The tokenizer's folder if it is on this machine already, or None; nothing is downloaded."""
    folder = Path(origin.where)
    if not origin.is_local:
        try:
            folder = Path(snapshot_download(origin.where, revision=origin.revision, local_files_only=True))
        except (HFValidationError, LocalEntryNotFoundError):
            return None
    roots = (folder / "tokenizer", folder) if or_root else (folder / "tokenizer",)
    return next((root for root in roots if (root / "tokenizer_config.json").is_file()), None)


def _require_readable(component: Component) -> None:
    """InputError for a file of weights that is damaged or cannot be opened."""
    for file in component.files:
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, "pt"):
                    pass
            except (SafetensorError, OSError) as error:
                raise InputError(f"{file} cannot be read: {error}; it is damaged or not all there: copy or download it anew") from None


def _loaded_by_diffusers(loader: Any, component: Component, **options: Any) -> Any:
    """A network of diffusers, which refuses tensors of other shapes; InputError with its reason."""
    try:
        return loader.from_pretrained(component.folder, **options)
    except ValueError as error:
        if "expected shape" not in str(error):
            raise
        reason = str(error).split(". ")[0].removeprefix("Cannot load ").removeprefix(" because ")
        raise InputError(f"the weights in {component.folder} do not belong to its config.json: {reason}; {_ANEW}") from None


def _require_shapes(component: Component, mismatched: Iterable[tuple[str, Sequence[int], Sequence[int]]]) -> None:
    """InputError for tensors, each with the shapes found and wanted, that were left out because those differ."""
    told = [f"{name} is {list(found)}, and {list(wanted)} is wanted" for name, found, wanted in sorted(mismatched)]
    if told:
        more = f" (and {len(told) - 1} more)" if len(told) > 1 else ""
        raise InputError(f"the weights in {component.folder} do not belong to its config.json: {told[0]}{more}; {_ANEW}")


def _require_shards(folder: Path, weights: Sequence[Path]) -> None:
    """InputError if a file that the index of a checkpoint of several files names is not there."""
    have = {file.name for file in weights}
    for index in sorted(folder.glob("*.safetensors.index*.json")):
        named = set(read_json(Origin(str(folder)), [index.name]).get("weight_map", {}).values())
        if named & have and (lost := sorted(named - have)):
            raise InputError(f"{folder} lacks {', '.join(lost)}, which {index.name} names; copy or download the checkpoint anew")


def _suffix_of(file: Path) -> str | None:
    found = _SUFFIX.search(file.name)
    return found.group(1) if found else None


def _local_file(origin: Origin, name: str) -> Path | None:
    path = Path(origin.where) / name
    return path if path.is_file() else None


def _hub_file(origin: Origin, name: str) -> Path | None:
    """A file of a Hub repository in the local cache, or None if the repository has none of that name."""
    with _hub_errors(origin):
        try:
            return Path(hf_hub_download(origin.where, name, revision=origin.revision, local_files_only=not _hub_answers()))
        except RemoteEntryNotFoundError:
            return None


def _fetch(origin: Origin, subfolder: str, allow: Sequence[str], ignore: Sequence[str], or_root: bool) -> Path:
    """The folder of a part on disk, holding at least the files that match."""
    roots = (f"{subfolder}/", "") if or_root else (f"{subfolder}/",)
    for root in roots:
        folder = Path(origin.where) if origin.is_local else _snapshot(origin, root, allow, ignore)
        if any((folder / root).glob("*.json")):
            return folder / root
    raise InputError(f"{origin} has no {subfolder}/; it must be laid out as a diffusers pipeline's `save_pretrained` writes it")


def _snapshot(origin: Origin, root: str, allow: Sequence[str], ignore: Sequence[str]) -> Path:
    with _hub_errors(origin):
        return Path(
            snapshot_download(
                origin.where,
                revision=origin.revision,
                allow_patterns=[root + pattern for pattern in allow],
                ignore_patterns=[*(root + pattern for pattern in ignore), *([] if root else ["*/*"])],
                local_files_only=not _hub_answers(),
            )
        )


def _hub_answers() -> bool:
    """Whether the Hub can be reached at all, so that an offline machine is not made to wait for every retry."""
    if constants.HF_HUB_OFFLINE:
        return False
    try:
        request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
        urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
    except ValueError:
        raise InputError(f"HF_ENDPOINT = {constants.ENDPOINT!r} is no address; write it with its scheme, such as https://HOST") from None
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@contextmanager
def _hub_errors(origin: Origin) -> Iterator[None]:
    """Tell the user what is wrong with a Hub id instead of showing how the library found out."""
    try:
        yield
    except HFValidationError:
        raise InputError(f"{origin} is neither a local folder nor a Hub id such as owner/name") from None
    except RepositoryNotFoundError:
        raise InputError(
            f"{origin} is not on the Hub, or you may not read it: check the spelling, "
            f"and log in with `hf auth login` if it is private or gated"
        ) from None
    except RevisionNotFoundError:
        raise InputError(f"{origin.where} has no revision {origin.revision!r}; `revision` takes a branch, a tag or a commit") from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        reason = " because HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
        raise UnreachableError(
            f"{origin} is not in the local cache, and {constants.ENDPOINT} cannot be reached{reason}: "
            f"go online once, set HF_ENDPOINT to a mirror, or name a local folder, as there is none of this name"
        ) from None
    except HfHubHTTPError as error:
        raise UnreachableError(f"{origin} could not be read from {constants.ENDPOINT}: {error}") from error
