"""`tune data`: what can be done with data on disk; sources are only read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tunesmith import InputError

app = typer.Typer(
    help="Prepare data on disk; files that are there are never changed.", no_args_is_help=True, add_completion=False, rich_markup_mode=None
)


@app.callback()
def data() -> None:
    """Prepare data on disk; files that are there are never changed."""


@app.command("split-audio")
def split_audio(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of videos, with its subfolders, or one video.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder for the sound; outside of IN.")],
    strip: Annotated[bool, typer.Option("--strip", help="Also write each video without its sound.")] = False,
) -> None:
    """Write the sound of each video in IN to OUT as 16 bit WAV, so that it pairs with the video by name.

    What OUT has already is kept as it is. Exit code 2 if a video is damaged or IN and OUT do not fit.
    """
    from .split import split

    failed: set[str] = set()
    for outcome in split(source, target, strip):
        if outcome.failed:
            failed.add(outcome.name)
        typer.echo(str(outcome), err=outcome.failed)
    if failed:
        raise InputError(f"{len(failed)} {'video' if len(failed) == 1 else 'videos'} could not be split; the others were")
