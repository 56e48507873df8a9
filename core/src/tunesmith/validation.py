"""Validation: the core owns prompts, sizes, seeds, names and files; the family owns the sampling."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import torch

from .batch import Caption, FieldValue
from .errors import RunFailed
from .hooks import blamed_on
from .media import Media, MediaWriter, Report, SampleRequest, write_image
from .plugin import Part
from .run import Run
from .rundir import staged

if TYPE_CHECKING:
    from .config import Config
    from .family import Family


def captions(config: Config) -> list[Caption]:
    """Every text that validation needs encoded: the prompts, and the negative prompt."""
    if not config.prompts:
        return []
    return [*(Caption(text) for text in config.prompts.values()), Caption(config.validation.negative_prompt, negative=True)]


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
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            run.hooks.validate(run, report)
    finally:
        denoiser.train()
    if run.is_main and (report.media or report.metrics):
        files = write_media(run, report)
        run.emit("validation", files=[str(file) for file in files], metrics=report.metrics)


def sample_all(run: Run, report: Report) -> None:
    """Sample every prompt at every size with every seed, through the family's own pipeline."""
    requests = list(sample_requests(run))
    if not requests:
        return
    decoder = run.load(Part.DECODER)
    try:
        pipeline = decoder.pipeline(run.model.denoiser)
        with run.progress.stage(f"sampling at step {run.step}", len(requests)) as bar:
            for request in requests:
                with run.autocast():
                    media = decoder.sample(pipeline, request)
                report.add(replace(media, recipe={**media.recipe, **_provenance(run, request)}))
                bar.advance()
    finally:
        decoder.release()


def sample_requests(run: Run) -> Iterator[SampleRequest]:
    """What `[validation]` asks for; nicknames make the names."""
    table, defaults = run.config.validation, run.family.defaults
    negative = run.prompt_fields.get(Caption(table.negative_prompt, negative=True), {})
    for nickname, prompt in run.config.prompts.items():
        for width, height in sizes(run.config, run.family):
            for seed in table.seeds:
                yield SampleRequest(
                    name=f"{nickname}-{width}x{height}-seed{seed}",
                    prompt=prompt,
                    negative_prompt=table.negative_prompt,
                    width=width,
                    height=height,
                    frames=defaults.frames,
                    guidance=defaults.guidance if table.guidance is None else table.guidance,
                    steps=table.steps or defaults.sampling_steps,
                    seed=seed,
                    scheduler=table.scheduler,
                    conditions=_on(run.prompt_fields[Caption(prompt)], run.device),
                    negative=_on(negative, run.device),
                )


def write_media(run: Run, report: Report) -> list[Path]:
    """Write the media of a report; a file appears whole or not at all, and replaces the same file of an earlier attempt."""
    writers = media_writers(run)
    target = run.directory.validation / f"step-{report.step:06d}"
    made = target.with_name(f".{target.name}.new")
    rmtree(made, ignore_errors=True)
    with staged(made) as folder:
        written = [file.relative_to(folder) for media in report.media for file in _write(media, folder, writers)]
    for file in written:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / file, target / file)
    rmtree(made)
    return [target / file for file in written]


def media_writers(run: Run) -> Mapping[str, MediaWriter]:
    """Writers by kind of media: the core's for images, and those that plugins bring."""
    writers: dict[str, MediaWriter] = {"image": write_image}
    for plugin in run.plugins:
        with blamed_on(plugin.name, "media_writers"):
            writers.update(plugin.media_writers())
    return writers


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
