"""What the pictures are called: captions from text files, file names or one prompt."""

from __future__ import annotations

from pathlib import Path

from ..config.tables import DatasetTable


class NoCaption(Exception):
    """Why a file has no caption; the sample is left out and counted."""


def captions_of(file: Path, table: DatasetTable) -> tuple[str, ...]:
    """The captions that a sample may have, at least one; NoCaption with the reason if there is none.

    textfile: the lines of the .txt file beside the picture, stripped, without empty ones. filename: the name without
    its ending, underscores read as spaces. instance: the dataset's one prompt.
    """
    if table.captions == "instance":
        return (table.instance_prompt or "",)
    if table.captions == "filename":
        return (file.stem.replace("_", " ").strip(),)
    return _from_text_file(text_file(file))


def text_file(file: Path) -> Path:
    """Where the captions of a picture are, with `captions = "textfile"`."""
    return file.with_suffix(".txt")


def _from_text_file(path: Path) -> tuple[str, ...]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise NoCaption("no .txt file beside the picture") from None
    except UnicodeDecodeError:
        raise NoCaption("the .txt file is not UTF-8") from None
    except OSError as error:
        raise NoCaption(f"the .txt file cannot be read ({error.strerror})") from None
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise NoCaption("the .txt file is empty")
    return lines
