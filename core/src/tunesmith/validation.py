"""Validation: the core owns prompts, sizes, seeds, names and files; the family owns the sampling. A preview never ends a run."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import torch

from .batch import Caption, FieldValue
from .errors import DISK_ERRORS, RunFailed, Stopped
from .media import Media, MediaWriter, Report, SampleRequest, Wanted
from .plugin import Part
from .previews import Preview, media_writers
from .run import Run
from .rundir import staged

if TYPE_CHECKING:
    from .config import Config
    from .family import Family
    from .model import Model


def sizes(config: Config, family: Family) -> list[tuple[int, int]]:
    """The sizes (width, height) to sample at: those of the config, or the family's own."""
    wanted = [tuple(map(int, text.split("x"))) for text in config.validation.resolutions]
    return [(width, height) for width, height in wanted] or [family.defaults.size]


def validate(run: Run) -> None:
    """Run the `validate` hook on the weights as they are, and write what it made to `validation/step-NNNNNN/`."""
    report = Report(run.step)
    denoiser = run.model.denoiser
    denoiser.eval()
    try:
        with run.engine.weights_to_use(), torch.no_grad(), torch.random.fork_rng(devices=()):
            run.hooks.validate(run, report)
    finally:
        denoiser.train()
    if run.is_main and (report.media or report.metrics):
        files = write_media(run, report)
        run.emit("validation", files=[str(file) for file in files], metrics=report.metrics)


def sample_all(run: Run, report: Report) -> None:
    """Make every preview at every size with every seed, through the family's own pipeline; one that fails is told and left out."""
    wanted = list(sample_requests(run))
    if not wanted:
        return
    with forgiving(run, "previews"):
        decoder = run.load(Part.DECODER)
        try:
            pipeline = decoder.pipeline(run.model.denoiser)
            with run.progress.stage(f"sampling at step {run.step}", len(wanted)) as bar:
                for preview, request in wanted:
                    with forgiving(run, request.name):
                        report.add(sampled(run, decoder, pipeline, preview, request))
                    bar.advance()
        finally:
            decoder.release()


def sampled(run: Run, decoder: Model, pipeline: Any, preview: Preview, request: SampleRequest) -> Media:
    """One picture or clip, with its whole recipe."""
    sound = run.family.sound
    rate, channels = (sound.sample_rate, sound.channels) if sound is not None else (16_000, 1)
    shape = Wanted(request.width, request.height, request.fps, rate, channels)
    given = {what: one.read(shape).to(run.device) for what, one in preview.given.items()}
    with run.autocast():
        media = decoder.sample(pipeline, replace(request, given=given))
    files = {"given_files": {what: str(one.file) for what, one in preview.given.items()}} if preview.given else {}
    return replace(media, recipe={**media.recipe, **files, **_provenance(run, request)})


@contextmanager
def forgiving(run: Run, name: str) -> Iterator[None]:
    """A preview that fails is told, and the run goes on; only a disk that cannot be written to ends it, as everywhere."""
    try:
        yield
    except Stopped:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise
        reason = f"{type(error).__name__}: {error}"
        run.progress.message(f"validation at step {run.step}: {name} could not be made ({reason}); the run goes on")
        run.emit("warning", message=f"{name} could not be made", reason=reason)
        if run.device.type == "cuda":
            torch.cuda.empty_cache()


def sample_requests(run: Run) -> Iterator[tuple[Preview, SampleRequest]]:
    """What `[validation]` asks for; the names of previews make those of files."""
    table, defaults = run.config.validation, run.family.defaults
    negative = run.prompt_fields.get(Caption(table.negative_prompt, negative=True), {})
    for preview in run.previews:
        for width, height in sizes(run.config, run.family):
            for seed in table.seeds:
                yield (
                    preview,
                    SampleRequest(
                        name=f"{preview.name}-{width}x{height}-seed{seed}",
                        prompt=preview.prompt,
                        negative_prompt=table.negative_prompt,
                        width=width,
                        height=height,
                        frames=table.num_frames or defaults.frames,
                        fps=defaults.fps,
                        guidance=defaults.guidance if table.guidance is None else table.guidance,
                        steps=table.steps or defaults.sampling_steps,
                        seed=seed,
                        scheduler=table.scheduler,
                        conditions=_on(run.prompt_fields[Caption(preview.prompt)], run.device),
                        negative=_on(negative, run.device),
                    ),
                )


def write_media(run: Run, report: Report) -> list[Path]:
    """Write the media of a report; a file appears whole or not at all, and replaces the same file of an earlier attempt."""
    writers = media_writers(run.plugins)
    target = run.directory.validation / f"step-{report.step:06d}"
    made = target.with_name(f".{target.name}.new")
    rmtree(made, ignore_errors=True)
    written: list[Path] = []
    with staged(made) as folder:
        for media in report.media:
            with forgiving(run, media.name):
                written += [file.relative_to(folder) for file in _write(media, folder, writers)]
    for file in written:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / file, target / file)
    rmtree(made)
    return [target / file for file in written]


def _write(media: Media, folder: Path, writers: Mapping[str, MediaWriter]) -> list[Path]:
    if media.kind not in writers:
        raise RunFailed(f"no active plugin can write media of kind {media.kind!r}; there are writers for {', '.join(sorted(writers))}")
    return writers[media.kind](media, folder)


def _provenance(run: Run, request: SampleRequest) -> dict[str, Any]:
    return {
        "name": request.name,
        "run": run.directory.name,
        "step": run.step,
        "precision": run.config.run.precision,
        "weights_kept_in": run.config.run.weights,
        "config": run.config.data,
        "tunesmith": version("tunesmith"),
    }


def _on(fields: Mapping[str, FieldValue], device: torch.device) -> dict[str, FieldValue]:
    return {key: value.to(device) for key, value in fields.items()}
