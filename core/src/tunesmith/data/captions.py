"""What the pictures are called: captions from text files, file names or one prompt."""

from __future__ import annotations

import stat
from pathlib import Path

from ..config.datasets import SampleTable

MOST_BYTES = 2**20
"""A larger .txt file holds no captions but something else."""


class NoCaption(Exception):
    """Why a file has no caption; the sample is left out and counted."""


def captions_of(file: Path, table: SampleTable) -> tuple[str, ...]:
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
        text = _content(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise NoCaption("no .txt file beside the picture") from None
    except UnicodeDecodeError:
        raise NoCaption("the .txt file is not UTF-8") from None
    except OSError as error:
        raise NoCaption(f"the .txt file cannot be read ({error.strerror})") from None
    if "\0" in text:
        raise NoCaption("the .txt file holds NUL characters, so it is not UTF-8 text")
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise NoCaption("the .txt file is empty")
    return lines


def _content(path: Path) -> bytes:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever
        raise NoCaption("what has the name of the .txt file is a folder, pipe or device")
    if status.st_size > MOST_BYTES:
        raise NoCaption(f"the .txt file is larger than {MOST_BYTES // 2**20} MiB, which is no caption")
    return path.read_bytes()
