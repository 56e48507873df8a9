"""What `tune plan` tells: buckets, losses, remedies, steps, shares, bytes, captions; and that it writes nothing."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from core.tests.conftest import HOOKS
from core.tests.data.clips import ClipFacts, clip
from core.tests.data.support import picture, pictures
from tunesmith import InputError
from tunesmith.cli.app import main
from tunesmith.config import load_config
from tunesmith.data import preflight
from tunesmith.plan import Plan, make_plan

FAMILY = """
from core.tests.data.support import Facts
from core.tests.data.clips import ClipFacts

class FactsSettings(Settings):
    clips: bool = False
    '''Whether it is a family of clips.'''

class Probe(FamilyPlugin[FactsSettings]):
    '''A family for tests.'''

    def family(self):
        return ClipFacts() if self.settings.clips else Facts()
"""


@pytest.fixture(autouse=True)
def _installed(installation: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installation.plugin("facts", FAMILY + HOOKS)
    installation.plugin("clips", "from core.tests.data.clips import ClipPlugin as Probe")
    installation.plain("adapter", "ADAPT")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def plan_of(datasets: str, run: str = "batch_size = 2", model: str = "", rest: str = "", sheet: Path | None = None) -> Plan:
    text = f'[run]\nsteps = 10\ndevice = "cpu"\n{run}\n[model]\nfamily = "facts"\n{model}\n{datasets}\n{rest}\n'
    Path("c.toml").write_text(text)
    return make_plan(load_config(Path("c.toml")), sheet)


def dataset(path: str, *settings: str) -> str:
    return "\n".join(["[[datasets]]", f'path = "{path}"', 'captions = "filename"', *settings])


def printed(plan: Plan, terminal: bool = False) -> str:
    stream = io.StringIO()
    Console(file=stream, force_terminal=terminal, width=120, soft_wrap=not terminal).print(plan.render())
    return stream.getvalue()


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    files = [Path(parent) / name for parent, _, names in os.walk(folder) for name in (".", *names)]
    return {str(file): (file.lstat().st_mtime_ns, file.lstat().st_size) for file in files if "__pycache__" not in str(file)}


def test_buckets_are_told_with_what_an_epoch_takes_of_them_and_what_their_latents_weigh(tmp_path):
    pictures(tmp_path / "data", 5)
    pictures(tmp_path / "data", 4, (64, 32), prefix="wide")
    picture(tmp_path / "data/tall.png", (32, 64))
    plan = plan_of(dataset("data", 'crop = "random"', "variants = 3", "resolution = 64"))
    [facts] = plan.datasets
    told = {(one.width, one.height): (one.samples, one.batches, one.left_over) for one in facts.buckets}
    assert sorted(told.values()) == [(1, 0, 1), (4, 2, 0), (5, 2, 1)]
    assert told[(64, 64)] == (5, 2, 1)
    assert (plan.batches_per_epoch, plan.steps_per_epoch, plan.steps, plan.epochs) == (4, 4, 10, 2.5)
    for one in facts.buckets:  # fp32 latents [3, H / 8, W / 8] of three crops of each sample
        assert one.cache_bytes == (one.samples * 3 * 4 * 3 * (one.height // 8) * (one.width // 8) if one.batches else 0)
    assert plan.cache_bytes == sum(one.cache_bytes for one in facts.buckets)
    assert plan_of(dataset("data"), run="batch_size = 2\ncache = false").cache_bytes is None


def test_steps_an_epoch_count_accumulation_and_every_process_of_a_launcher(tmp_path, monkeypatch):
    pictures(tmp_path / "data", 24)
    monkeypatch.setenv("WORLD_SIZE", "3")
    plan = plan_of(dataset("data"), run="batch_size = 2\ngradient_accumulation = 2")
    assert (plan.processes, plan.batches_per_epoch, plan.steps_per_epoch) == (3, 12, 2)
    assert plan.datasets[0].samples_per_step == 2 * 2 * 3
    assert plan.epochs == 10 / 2
    monkeypatch.setenv("WORLD_SIZE", "many")
    with pytest.raises(InputError, match="WORLD_SIZE = 'many'"):
        plan_of(dataset("data"))


def test_every_loss_is_told_by_reason_with_names(tmp_path):
    pictures(tmp_path / "data", 4)
    (tmp_path / "data/page.png").write_text("<html>")
    picture(tmp_path / "data/tall.png", (32, 64))
    plan = plan_of(dataset("data"))
    text = printed(plan)
    assert re.search(r"6 +found", text)
    assert re.search(r"5 +readable +1 +not a JPEG.*\(page\.png\)", text)
    assert re.search(r"4 +in a whole batch +1 +the bucket has too few samples.*tall\.png", text)
    assert not plan.problems
    assert not any("loses" in note for note in plan.notes)  # a third is lost


def test_a_dataset_without_a_whole_batch_fails_the_plan_which_still_tells_of_all(tmp_path, monkeypatch, capsys):
    pictures(tmp_path / "few", 2)
    pictures(tmp_path / "enough", 6)
    plan = plan_of("\n".join([dataset("few"), dataset("enough"), dataset("gone")]), run="batch_size = 5")
    few, gone = plan.problems
    assert (few.line, few.message) == (8, "dataset 'few' yields no whole batch")
    assert gone.line == 14
    assert "gone" in gone.message
    before = tree(tmp_path)
    for arguments in ([], ["--json"]):
        monkeypatch.setattr(sys, "argv", ["tune", "plan", "c.toml", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        out, err = capsys.readouterr()
        for told in ("dataset 'few'", "dataset 'enough'", "gone", "`repeats = 3`"):
            assert told in err
        if arguments:
            answer = json.loads(out)
            assert answer["ready"] is False
            assert [one["name"] for one in answer["datasets"]] == ["few", "enough"]
            assert len(answer["problems"]) == 2
        else:
            assert out == ""
    assert tree(tmp_path) == before


@pytest.mark.parametrize("length", ["steps = 10", "epochs = 2"])
def test_a_plan_in_which_nothing_can_be_trained_tells_why(tmp_path, length):
    pictures(tmp_path / "few", 2)
    (tmp_path / "none").mkdir()
    assert not plan_of(dataset("few")).problems
    Path("c.toml").write_text(Path("c.toml").read_text().replace("steps = 10", length).replace("batch_size = 2", "batch_size = 3"))
    for path in ("few", "none"):
        plan = make_plan(load_config(Path("c.toml"), [f"datasets.0.path='{path}'"]), Path("sheet.png"))
        [problem] = plan.problems
        assert problem.message == f"dataset '{path}' yields no whole batch"
        assert (plan.batches_per_epoch, plan.epochs, plan.datasets[0].share, plan.sheet) == (0, None, 0, None)
        assert "  remedy: " in printed(plan)
        assert any("no contact sheet is drawn" in note for note in plan.notes)
    assert not Path("sheet.png").exists()


@pytest.mark.parametrize("remedy", ["repeats", "batch_size"])
def test_remedies_have_numbers_that_help(tmp_path, remedy):
    pictures(tmp_path / "data", 7)
    pictures(tmp_path / "data", 3, (64, 32), prefix="wide")
    pictures(tmp_path / "data", 2, (32, 64), prefix="tall")
    before = plan_of(dataset("data"), run="batch_size = 7").datasets[0]
    assert [one.batches for one in before.buckets].count(0) == 2
    [number] = map(int, re.findall(rf"`{remedy} = (\d+)`", before.remedies[0]))
    after = plan_of(dataset("data", f"{remedy} = {number}"), run="batch_size = 7").datasets[0]
    assert 0 not in [one.batches for one in after.buckets]
    assert after.remedies == ()
    nearly = plan_of(dataset("data", f"{remedy} = {number + (1 if remedy == 'batch_size' else -1)}"), run="batch_size = 7").datasets[0]
    assert 0 in [one.batches for one in nearly.buckets]


def test_samples_without_a_mask_are_kept_by_the_remedy_that_is_told(tmp_path):
    pictures(tmp_path / "data", 7)
    pictures(tmp_path / "masks", 2)
    last = max(file for file in (tmp_path / "data").iterdir() if file.suffix != ".txt")
    (tmp_path / "masks" / last.name).write_bytes(b"")  # which no remedy helps
    masks = '[[datasets]]\nkind = "mask"\npath = "masks"\nof = "data"'
    [facts] = plan_of(f"{dataset('data')}\n{masks}").datasets
    assert facts.funnel["counts"]["paired"] == 2
    assert [(one.role, one.name) for one in facts.companions] == [("mask", "masks")]
    [remedy] = facts.remedies
    assert "4; `missing = \"full\"` in the table of 'masks'" in remedy
    [facts] = plan_of(f'{dataset("data")}\n{masks}\nmissing = "full"').datasets
    assert (facts.funnel["counts"]["paired"], facts.remedies) == (6, ())
    damaged = next((tmp_path / "masks").iterdir())
    damaged.write_bytes(b"no picture")
    [facts] = plan_of(f'{dataset("data")}\n{masks}\nmissing = "full"').datasets
    assert (facts.funnel["counts"]["paired"], facts.remedies) == (5, ())  # that setting does not help here
    [facts] = plan_of(f"{dataset('data')}\n{masks}").datasets
    assert "4; `missing" in facts.remedies[-1]


def test_masks_that_no_plugin_can_weigh_by_are_told(tmp_path, installation):
    wrapper = "@hookimpl(wrapper=True)\n    def compute_loss(self, run, step):\n        return (yield)"
    installation.plain("weigher", "SAMPLE", wrapper)
    pictures(tmp_path / "data", 4)
    pictures(tmp_path / "masks", 4)
    masked = f'{dataset("data")}\n[[datasets]]\nkind = "mask"\npath = "masks"\nof = "data"'
    assert any("the masks of 'masks' change nothing" in note for note in plan_of(masked).notes)
    for plan in (plan_of(masked, rest="[plugins.weigher]"), plan_of(dataset("data"))):
        assert not any("change nothing" in note for note in plan.notes)


def test_clips_are_told_with_their_own_rate_and_the_trained_one(tmp_path):
    for number, seconds in enumerate((1, 2, 4)):
        clip(tmp_path / f"clips/fast-{number}.clip", seconds, fps=60)
    clip(tmp_path / "clips/slow.clip", 3, fps=24)
    plan = plan_of(dataset("clips", 'kind = "clips"', "fps = 15", "num_frames = 9"), run="batch_size = 1", model="clips = true")
    slow, fast = plan.datasets[0].retiming
    assert (slow.source_fps, slow.trained_fps, slow.frames, slow.samples, slow.shortest, slow.longest) == (24, 15, 9, 1, 45, 45)
    assert (fast.source_fps, fast.samples, fast.shortest, fast.longest) == (60, 3, 15, 60)
    assert fast.seconds == pytest.approx(9 / 15)
    assert plan.cache_bytes == 4 * 4 * (3 * 3 * 4 * 4)  # four clips, [3, 3, 4, 4] in fp32
    assert list(plan.sigma_shift) == ["32x32@9"]
    assert re.search(r"60 +15 +3 +9 +0\.60 +15 to 60", printed(plan))


def test_losing_more_than_half_is_the_first_thing_that_is_told(tmp_path):
    for number in range(5):
        clip(tmp_path / f"clips/{number}.clip", 0.2 if number else 2)
    kept = dataset("clips", 'name = "kept"', 'kind = "clips"', "fps = 60", "is_regularisation = true")
    short = dataset("clips", 'kind = "clips"')
    plan = plan_of(f"{kept}\n{short}", run="batch_size = 1", model="clips = true")
    assert plan.notes[0].startswith("dataset 'clips' loses 80% of what was found, above all 4 not of a usable length: shorter than 9")
    assert sum("loses" in note for note in plan.notes) == 1


def test_captions_longer_than_the_encoder_reads_are_counted(tmp_path, monkeypatch):
    for name in ("a b c", "one two three four five six", "one two three four five", "a b c d e f g"):
        clip(tmp_path / f"clips/{name}.clip", 2)
    told = plan_of(dataset("clips", 'kind = "clips"'), run="batch_size = 1", model="clips = true").datasets[0].captions
    assert (told.limit, told.distinct, told.counted, told.too_long, told.longest) == (5, 4, 4, 2, 7)
    assert set(told.examples) == {"one two three four five six.clip", "a b c d e f g.clip"}
    monkeypatch.setattr(preflight, "MOST_COUNTED", 2)
    plan = plan_of(dataset("clips", 'kind = "clips"'), run="batch_size = 1", model="clips = true")
    assert plan.datasets[0].captions.counted == 2
    assert "2 of them, evenly spread, were counted" in printed(plan)


def test_captions_that_the_filter_empties_are_not_asked_for_again(tmp_path):
    pictures(tmp_path / "data", 2)
    for file in (tmp_path / "data").iterdir():
        file.with_suffix(".txt").write_text("watermark")
    table = '[[datasets]]\npath = "data"\ncaption_filter = ["watermark"]'
    plan = plan_of(table)
    assert plan.datasets[0].funnel["counts"]["captioned"] == 0
    assert plan.datasets[0].remedies == ()
    assert "  different captions: 0\n" in printed(plan)


def test_captions_that_cannot_be_counted_are_said_to_be_so(tmp_path):
    pictures(tmp_path / "data", 2)
    plan = plan_of(dataset("data"))
    assert (plan.datasets[0].captions.limit, plan.datasets[0].captions.distinct) == (None, 2)
    assert "different captions: 2; how much of one the encoder reads is not known" in printed(plan)


def test_regularisation_is_told_with_an_adapter_and_without(tmp_path):
    pictures(tmp_path / "data", 2)
    whole = plan_of(dataset("data", "is_regularisation = true"))
    assert any("'data' is ordinary data in this run" in note for note in whole.notes)
    adapted = plan_of(dataset("data", "is_regularisation = true"), rest="[plugins.adapter]")
    assert any("'data' keeps what the model knows" in note for note in adapted.notes)
    assert not any("ordinary" in note for note in adapted.notes)


def test_shares_follow_weights_sizes_and_the_steps_at_which_datasets_are_there(tmp_path):
    pictures(tmp_path / "a", 6)
    pictures(tmp_path / "b", 2)

    def shares(one: str, two: str) -> list[float]:
        return [facts.share for facts in plan_of(f"{dataset('a', one)}\n{dataset('b', two)}").datasets]

    assert shares("", "") == pytest.approx([0.75, 0.25])
    assert shares("weight = 1", "weight = 4") == pytest.approx([0.2, 0.8])
    assert shares("end_step = 4", "start_step = 4") == pytest.approx([0.4, 0.6])
    assert shares("", "start_step = 6") == pytest.approx([0.6 + 0.4 * 0.75, 0.4 * 0.25])
    late = plan_of(f"{dataset('a')}\n{dataset('b', 'start_step = 10')}")
    assert late.datasets[1].share == 0
    assert any("'b' is never trained on: it comes in at step 10" in note for note in late.notes)


def test_a_plan_writes_nothing_and_a_sheet_only_its_file(tmp_path):
    pictures(tmp_path / "data", 4)
    plan_of(dataset("data"))
    before = tree(tmp_path)
    assert not [file for file in before if "cache" in file or "sqlite" in file]
    plan_of(dataset("data"))
    assert tree(tmp_path).keys() == before.keys()
    plan = plan_of(dataset("data"), sheet=Path("sheet.png"))
    assert tree(tmp_path).keys() - before.keys() == {str(tmp_path / "sheet.png")}
    assert plan.sheet == "sheet.png"
    assert "contact sheet: sheet.png" in printed(plan)


def test_duplicates_are_told(tmp_path):
    pictures(tmp_path / "data", 4)
    (tmp_path / "data/copy.png").write_bytes((tmp_path / "data/01.png").read_bytes())
    picture(tmp_path / "data/02.jpg", seed=9)
    again = dataset("data", 'name = "again"')
    plan = plan_of(f"{dataset('data')}\n{again}")
    told = [(one.why, {name for _, name in one.files}) for one in plan.duplicates]
    assert told[0] == ("same bytes", {"01.png", "copy.png"})
    assert told[1:] == [("same name", {"02.jpg", "02.png"})] * 2  # in either dataset; files are no duplicates of themselves
    assert "same bytes: 1 (data:01.png, data:copy.png)" in printed(plan)


def test_samples_are_told_where_they_are_not_as_many_as_files(tmp_path):
    pictures(tmp_path / "data", 6)
    assert "samples of them" not in printed(plan_of(dataset("data")))
    assert re.search(r"6 +large enough\n +4 +samples of them\n +4 +in a bucket", printed(plan_of(dataset("data", "max_samples = 4"))))


def test_the_keys_of_the_json_stay(tmp_path):
    clip(tmp_path / "clips/a.clip", 2)
    answer = json.loads(json.dumps(plan_of(dataset("clips", 'kind = "clips"'), run="batch_size = 1", model="clips = true").as_json()))
    assert " ".join(answer) == (
        "ready run family plugins problems datasets processes gradient_accumulation batches_per_epoch steps_per_epoch steps epochs "
        "sigma_shift cache cache_bytes validation_samples validation memory trains_base notes duplicates sheet savings"
    )
    [facts] = answer["datasets"]
    assert " ".join(facts) == (
        "name kind origin batch_size samples_per_step repeats variants batches_per_epoch share start_step end_step is_regularisation "
        "cache_bytes stations funnel buckets retiming captions companions remedies"
    )
    assert " ".join(facts["buckets"][0]) == "width height frames seconds samples batches left_over cache_bytes"
    assert " ".join(facts["retiming"][0]) == "source_fps trained_fps frames seconds samples shortest longest"
    assert " ".join(facts["captions"]) == "limit distinct counted too_long longest examples"
    assert " ".join(answer["memory"]) == "parameters size batch_size phases peak reason notes"
    assert answer["savings"] is None


def test_what_validation_makes_is_told(tmp_path):
    pictures(tmp_path / "data", 4)
    table = '[validation]\nprompts = { a = "one", b = "two" }\nresolutions = ["64x64", "96x64"]\nseeds = [1, 2]\n'
    plan = plan_of(dataset("data"), rest=table)
    assert plan.validation_samples == 8
    assert "each validation makes 8 pictures of 64x64 and 96x64\n" in printed(plan)
    assert "each validation makes nothing\n" in printed(plan_of(dataset("data")))


@pytest.mark.parametrize(("asked", "frames", "is_longer"), [("", 17, True), ("num_frames = 9", 9, False)])
def test_clips_of_validation_that_are_longer_than_all_that_is_trained_on_are_noted(
    tmp_path, installation, monkeypatch, asked, frames, is_longer
):
    facts = {"makes": "clip", "defaults": replace(ClipFacts.defaults, frames=17, fps=16.0), "round_frames": lambda self, frames: frames}
    for name, value in facts.items():
        monkeypatch.setattr(ClipFacts, name, value)
    installation.plain("writer", "REPORT", 'def media_writers(self):\n        return {"clip": None}')
    clip(tmp_path / "clips/a.clip", 2)
    data = dataset("clips", 'kind = "clips"', "num_frames = 9")
    rest = f'[plugins.writer]\n[validation]\nprompts = {{ a = "one" }}\n{asked}\n'
    plan = plan_of(data, run="batch_size = 1", model="clips = true", rest=rest)
    assert f"each validation makes 1 clip of 32x32, {frames} frames at 16 fps\n" in printed(plan)
    told = (
        "validation makes clips of 17 frames, and the longest that is trained on has 9: [validation] num_frames = 9 shows what is trained"
    )
    assert (told in plan.notes) is is_longer


def test_a_terminal_gets_tables_and_anything_else_plain_lines(tmp_path):
    pictures(tmp_path / "data", 4)
    plan = plan_of(dataset("data"))
    assert "─" in printed(plan, terminal=True)
    assert printed(plan).isascii()


def test_names_that_would_act_on_a_terminal_are_written_as_escapes(tmp_path):
    pictures(tmp_path / "data", 2)
    (tmp_path / "data/\x1b[31mred.png").write_text("no picture")
    text = printed(plan_of(dataset("data")), terminal=False)
    assert "\x1b[31m" not in text
    assert "\\x1b[31mred.png" in text


def test_many_buckets_are_cut_on_the_screen_and_whole_in_json(tmp_path):
    for number in range(60):
        picture(tmp_path / f"data/{number}.png", (64 + 16 * number, 640))
    plan = plan_of(dataset("data", "resolution = 512"), run="batch_size = 1")
    buckets = plan.as_json()["datasets"][0]["buckets"]
    assert len(buckets) > 30
    assert f"... and {len(buckets) - 24} more buckets" in printed(plan)
