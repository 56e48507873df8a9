"""`tune cache`: what is in a cache, whether it is sound, and what could go."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import InputError

if TYPE_CHECKING:
    from ..cache.upkeep import Amount, Overview, Pruning

app = typer.Typer(name="cache", help="Look after the cache: what is in it, whether it is sound, what could go.", no_args_is_help=True)

ConfigFile = Annotated[Path | None, typer.Argument(metavar="[CONFIG]", help="A config: its cache is meant.", show_default=False)]
Folder = Annotated[Path | None, typer.Option("--dir", metavar="DIR", help="Folder of the cache; `cache` by default.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Write JSON instead of text.")]
SHOWN = 20
"""Damaged entries that are listed."""


@app.command("ls")
def show(config: ConfigFile = None, folder: Folder = None, as_json: AsJson = False) -> None:
    """Show how large the cache is, by field and by config, and what is damaged or unused."""
    from ..cache.upkeep import overview

    found = overview(_folder(config, folder))
    print(_json(found) if as_json else "\n".join(_lines(found)))


@app.command()
def verify(
    config: ConfigFile = None,
    folder: Folder = None,
    forget: Annotated[bool, typer.Option("--forget", help="Forget what is damaged, so that the next run makes it anew.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read every byte of the cache and tell which entries are damaged; exit code 1 if some are and stay."""
    from ..cache.upkeep import overview, verify
    from ..progress import Progress

    place = _folder(config, folder)
    with Progress("quiet" if as_json else "auto") as progress, progress.stage("reading bytes", overview(place).total.bytes) as bar:
        count, damaged = verify(place, forget, bar.advance)
    if as_json:
        print(json.dumps({"entries": count, "damaged": [asdict(one) for one in damaged], "forgotten": forget}, indent=2))
    else:
        for one in damaged[:SHOWN]:
            print(f"damaged: {one.field or 'an entry'} {one.key} in {one.shard} at byte {one.offset}")
        if len(damaged) > SHOWN:
            print(f"and {len(damaged) - SHOWN} more")
        after = "they are forgotten, and the next run makes them anew" if forget else "--forget lets the next run make them anew"
        print(f"{len(damaged)} of {count} entries are damaged" + (f"; {after}" if damaged else ""))
    if damaged and not forget:
        raise typer.Exit(1)


@app.command()
def prune(
    config: ConfigFile = None,
    folder: Folder = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this it is only told.")] = False,
    as_json: AsJson = False,
) -> None:
    """Tell what no config that exists uses any more, and remove it with --yes."""
    from ..cache.upkeep import prune

    made = prune(_folder(config, folder), yes)
    print(json.dumps({"removed": yes, **_plain(made)}, indent=2) if as_json else "\n".join(_told(made, yes)))


def _folder(config: Path | None, folder: Path | None) -> Path:
    if config is not None and folder is not None:
        raise InputError(f"give a config, whose cache is meant, or --dir, not both (got {config} and {folder})")
    if config is None:
        return folder or Path("cache")
    from ..config import load_config

    return load_config(config, ()).run.cache_dir


def _lines(found: Overview) -> list[str]:
    """The overview as text."""
    lines = [f"{found.folder}: {_amount(found.total)} in {found.files} files"]
    lines += [f"  {name or 'of unknown field (an earlier version)'}: {_amount(amount)}" for name, amount in found.fields.items()]
    for use in found.uses:
        lacks = f", and lacks {use.lacks}" if use.lacks else ""
        gone = "" if use.exists else " (the config is gone)"
        lines.append(f"used by {use.user}{gone}: {_amount(use.amount)}{lacks}")
    if not found.uses:
        lines.append("used by: no config is known; a config is known once it has run")
    lines.append(f"unused: {_amount(found.unused)}" + ("; `tune cache prune` tells more" if found.unused.entries else ""))
    if found.waste:
        lines.append(f"waste: {_size(found.waste)} of the files hold no entry")
    if found.damaged.entries:
        lines.append(f"damaged: {_amount(found.damaged)} are gone; the next run makes them anew")
    lines += [f"in use by {who}" for who in found.in_use_by]
    return lines


def _told(made: Pruning, removed: bool) -> list[str]:
    """The pruning as text."""
    lines = [f"the config is gone: {user}" for user in made.configs_gone]
    files = f"{len(made.deleted)} files deleted, {len(made.rewritten)} rewritten"
    if not made.unused.entries and not made.freed:
        return [*lines, "nothing to remove: every entry is used by a config that exists"]
    if removed:
        return [*lines, f"removed {_amount(made.unused)} that no config uses; {_size(made.freed)} freed ({files})"]
    return [
        *lines,
        f"{_amount(made.unused)} are used by no config that exists, as it was when it last ran; removing them frees {_size(made.freed)}",
        "nothing was removed; add --yes to do it",
    ]


def _amount(amount: Amount) -> str:
    return f"{amount.entries} entries, {_size(amount.bytes)}"


def _size(count: int) -> str:
    value = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.2f} TiB"


def _plain(made: Pruning) -> dict[str, Any]:
    """The pruning as plain values."""
    return {**asdict(made), "configs_gone": [str(user) for user in made.configs_gone]}


def _json(found: Overview) -> str:
    uses = [
        {"config": str(use.user.config), "overrides": use.user.overrides, "exists": use.exists, **asdict(use.amount), "lacks": use.lacks}
        for use in found.uses
    ]
    return json.dumps({**asdict(found), "uses": uses}, indent=2, default=str)
