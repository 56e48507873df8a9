"""One measurement of data in a process of its own: `data_parts.py NAME ARGUMENT ...` prints its result as a line of JSON."""

from __future__ import annotations

import json
import os
import queue
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar
from unittest import mock

import numpy as np
import torch
from parts import carry_out, encoder_alone, encoding, peak
from torch import Tensor

from tunesmith import Caption, Crop, Source
from tunesmith.config.datasets import ImageTable
from tunesmith.config.tables import RunTable
from tunesmith.data import loader
from tunesmith.data.order import Order
from tunesmith.data.scan import Surroundings, look_for_samples
from tunesmith.listing.index import Index
from tunesmith.trainer import Trainer

T = TypeVar("T")
EDGE = 128
"""Of the frames that are made of a film: the edge of a square with as many pixels."""
FRAMES = 16
FORGOTTEN = 16
"""Steps after which the system is asked to forget what it keeps of the cache."""
FAR = 240
"""Frames between two keyframes of the film."""


def work(count: int) -> None:
    """So many products of matrices."""
    matrix = torch.full((256, 256), 0.01)
    for _ in range(count):
        torch.mm(matrix, matrix)


def calibrate(seconds: str) -> dict[str, Any]:
    """How many products take so long: the most of ten tries, which is when the machine did the least besides."""
    work(100)
    rates = []
    for _ in range(10):
        began = time.perf_counter()
        work(200)
        rates.append(200 / (time.perf_counter() - began))
    return {"count": round(max(rates) * float(seconds))}


@contextmanager
def slowed(how: str, amount: float) -> Iterator[None]:
    """In place of the autoencoder what waits so many seconds for each picture, or computes so many products; or itself (`tiny`)."""
    from diffusers import AutoencoderDC

    encode_pixels = AutoencoderDC.encode
    made: dict[torch.Size, Any] = {}

    def slow(self: Any, pixels: Tensor, **kwargs: Any) -> Any:
        if pixels.shape not in made:
            made[pixels.shape] = encode_pixels(self, pixels, **kwargs)
        if how == "waits":
            time.sleep(amount * len(pixels))
        else:
            work(round(amount) * len(pixels))
        return made[pixels.shape]

    with mock.patch.object(AutoencoderDC, "encode", encode_pixels if how == "tiny" else slow):
        yield


def fill(config: str, how: str, amount: str) -> dict[str, Any]:
    """Seconds to fill the cache, with a slow encoder."""
    with slowed(how, float(amount)):
        return encoding(config)


def alone(checkpoint: str, count: str, batch: str, edge: str, how: str, amount: str) -> dict[str, Any]:
    """Seconds for as many pictures through the slow encoder alone, pixels in memory."""
    with slowed(how, float(amount)):
        return encoder_alone(checkpoint, count, batch, edge)


def start(folder: str, database: str, checkpoint: str) -> dict[str, Any]:
    """Seconds until a dataset is known, and until the first batch is drawn from it; the memory that it all took."""
    from tunesmith_sana import SanaFamily, SanaSettings

    family = SanaFamily(SanaSettings(path=checkpoint))
    table, run = ImageTable(path=folder, name="pictures", resolution=64), RunTable(steps=1, batch_size=4)
    before = peak()
    began, computed = time.perf_counter(), time.process_time()
    with Index(Path(database)) as index:
        dataset = look_for_samples(table, Surroundings(family, run, index), {})
    known = time.perf_counter()
    dataset.require_batches()
    order = Order([dataset], 0, cached=True, accumulation=1)
    order.batch(0)
    drawn = time.perf_counter()
    return {
        "samples": len(dataset.samples),
        "known": known - began,
        "drawn": drawn - began,
        "computed": time.process_time() - computed,
        "before": before,
        "peak": peak(),
    }


def make_film(file: str, minutes: str) -> dict[str, Any]:
    """A film with 24 frames a second of 640x360 and keyframes ten seconds apart."""
    import av

    generator = np.random.default_rng(0)
    with av.open(file, "w") as out:
        stream: Any = out.add_stream("libx264", rate=24, options={"preset": "veryfast", "g": str(FAR), "sc_threshold": "0"})
        stream.width, stream.height, stream.pix_fmt, stream.time_base = 640, 360, "yuv420p", Fraction(1, 24)
        coarse = generator.integers(0, 256, (46, 81, 3), dtype=np.uint8)
        wide = coarse.repeat(8, axis=0).repeat(8, axis=1)
        shown = [av.VideoFrame.from_ndarray(wide[:360, at : at + 640].copy(), format="rgb24").reformat(format="yuv420p") for at in range(8)]
        count = int(minutes) * 60 * 24
        for number in range(count):
            frame = shown[number % len(shown)]
            frame.pts, frame.time_base = number, Fraction(1, 24)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return {"frames": count, "bytes": os.path.getsize(file)}


def film(file: str, rounds: str) -> dict[str, Any]:
    """Seconds for a window near the middle, as a dataset reads it and by PyAV alone, by turns; and how far their pixels differ."""
    from tunesmith import Family, FamilyDefaults, Modality
    from tunesmith_video import VideoKind, VideoTable

    family = mock.create_autospec(Family, instance=True)
    family.modality, family.alignment, family.sound = Modality.VIDEO, 16, None
    family.round_frames = lambda frames: frames
    family.defaults = FamilyDefaults(size=(EDGE, EDGE), frames=FRAMES, fps=24, guidance=1, sampling_steps=1, aligned_block=0)
    kind = VideoKind(VideoTable(path=file, resolution=EDGE, num_frames=FRAMES, window="middle"), family)
    [piece] = kind.pieces(kind.probe(Path(file)), Path(file).name)
    crop, window = kind.part(piece, None)
    assert window is not None
    found: dict[str, list[float]] = {"ours": [], "alone": []}
    apart = 0.0
    for number in range(int(rounds)):
        moved = type(window)(window.start + 0.5 * number, window.frames, window.fps)
        source = Source("films", Path(file), Caption(""), crop, moved)
        results: dict[str, Tensor] = {}
        ways: dict[str, Callable[[], Tensor]] = {
            "ours": partial(kind.load, source, "pixels"),
            "alone": partial(pyav_alone, file, moved.start, crop),
        }
        for way in sorted(ways, reverse=bool(number % 2)):
            began = time.perf_counter()
            results[way] = ways[way]()
            found[way].append(time.perf_counter() - began)
        apart = max(apart, float((results["ours"] - results["alone"]).abs().max()))
    return {**found, "apart": apart, "start": window.start}


def pyav_alone(file: str, start: float, crop: Crop) -> Tensor:
    """The frames from `start` seconds on: sought, decoded with PyAV's defaults, resized and cut in the same way."""
    import av
    from av.video.reformatter import Interpolation, VideoReformatter

    lanczos = Interpolation.LANCZOS | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    (left, top), (width, height) = crop.offset, crop.size
    converter = VideoReformatter()
    taken: list[Any] = []
    with av.open(file) as container:
        stream = container.streams.video[0]
        base = stream.time_base
        assert base is not None
        container.seek(int(start / base), stream=stream)
        for frame in container.decode(stream):
            if float((frame.pts or 0) * base) < start - 0.5 / 24:
                continue
            resized = converter.reformat(frame, *crop.resize, "rgb24", interpolation=lanczos)
            taken.append(resized.to_ndarray()[top : top + height, left : left + width])
            if len(taken) == FRAMES:
                break
    return torch.from_numpy(np.stack(taken)).permute(3, 0, 1, 2).float().contiguous().div_(127.5).sub_(1.0)


class Timed(Generic[T]):
    """A queue that keeps how long each item was waited for."""

    def __init__(self, inner: queue.SimpleQueue[T]) -> None:
        self.put = inner.put
        self.inner = inner
        self.waits: list[float] = []
        self.empty = 0

    def get(self) -> T:
        """The next item."""
        self.empty += self.inner.empty()
        began = time.perf_counter()
        item = self.inner.get()
        self.waits.append(time.perf_counter() - began)
        return item


def reading(config: str, cache: str, steps: str) -> dict[str, Any]:
    """What the loop waits for batches from a cache on disk; what is read stays in memory neither here nor, for long, in the system's."""
    found: dict[str, Any] = {}
    lead_in = 16
    os.sync()  # what is not written yet cannot be forgotten

    class Waiting(Trainer):
        def train(self) -> None:
            with self.ahead() as ahead, self.progress.training(self.run.total_steps, 0):
                for _ in range(lead_in):
                    self.one_step(ahead)
                ahead._ready = timed = Timed(ahead._ready)  # type: ignore[assignment]
                read = bytes_read()
                began = time.perf_counter()
                for number in range(int(steps)):
                    if number % FORGOTTEN == 0:
                        drop_from_memory(Path(cache))
                    self.one_step(ahead)
                found.update(whole=time.perf_counter() - began, waits=timed.waits, empty=timed.empty, read=bytes_read() - read)
            self.run.stop("measured")

    with mock.patch.object(loader, "RECENT_BYTES", 0):
        carry_out(config, Waiting)
    return found


def drop_from_memory(folder: Path) -> None:
    """Have the system forget what it keeps of the files in a folder."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def bytes_read() -> int:
    """What this process has had read from disks."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["read_bytes"])


PARTS = {part.__name__: part for part in (calibrate, fill, alone, start, make_film, film, reading)}

if __name__ == "__main__":
    print(json.dumps(PARTS[sys.argv[1]](*sys.argv[2:])))
