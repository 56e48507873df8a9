"""CREPA on the twins of the families: what is trained, what is cached, when it ends, and what is refused."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from tunesmith import Run
from tunesmith.config import ConfigErrors
from tunesmith.engine import Engine
from tunesmith.session import assemble, remarks
from tunesmith.trainer import Trainer
from tunesmith_crepa import Crepa, plugin
from tunesmith_crepa.features import Encoder, align

from .conftest import FAMILIES, WIDTH

LORA = "[plugins.lora]\nrank = 2\n"
EVERY_FAMILY = pytest.mark.parametrize("family", FAMILIES)


def crepa_of(run: Run) -> Crepa:
    (crepa,) = (one for one in run.plugins if isinstance(one, Crepa))
    return crepa


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each call of the encoder, with what the run was doing."""
    calls: list[str] = []
    features, one_step = Encoder.features, Trainer.one_step
    doing = ["caching"]

    def count(self, *args):
        calls.append(doing[0])
        return features(self, *args)

    def step(self, *args):
        doing[0] = "training"
        one_step(self, *args)

    monkeypatch.setattr(Encoder, "features", count)
    monkeypatch.setattr(Trainer, "one_step", step)
    return calls


@EVERY_FAMILY
@pytest.mark.parametrize("settings", ["", 'source = "backbone"\nblock = 0\nteacher_block = 2'], ids=["encoder", "backbone"])
def test_it_trains_on_every_family_and_is_saved_with_the_model(train, watched, family, settings):
    result = train(family, "run", settings, LORA)
    assert [one.loss.terms.keys() for one in watched] == [{"crepa"}] * 3
    score = [float(one.step.metrics["crepa_alignment_score"]) for one in watched]
    assert [float(one.loss.terms["crepa"].detach()) for one in watched] == pytest.approx([-0.5 * value for value in score])
    assert all(-1.74 <= value <= 1.74 for value in score)
    told = result.steps[3]
    assert told["crepa_alignment_score"] == pytest.approx(score[-1])
    assert (told["crepa_weight"], told["crepa_cutoff"]) == (0.5, 0.0)
    saved = load_file(result.path / "final" / "extra" / "crepa.safetensors")
    width = watched[0].run.family.token_width
    assert {name: tuple(value.shape) for name, value in saved.items()} == {
        "0.weight": (width,),
        "0.bias": (width,),
        "1.weight": (width if settings else WIDTH, width),
        "1.bias": (width if settings else WIDTH,),
    }


@EVERY_FAMILY
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_the_term_reaches_the_blocks_up_to_the_aligned_one_and_the_projector_alone(train, watched, monkeypatch, family, checkpointing):
    backward = Engine.backward
    monkeypatch.setattr(Engine, "backward", lambda self, total: backward(self, watched[-1].loss.terms["crepa"]))
    monkeypatch.setattr(Engine, "update", lambda self: None)  # which would clear the gradients
    train(family, "run", "block = 1", "", "run.steps=1", f"run.gradient_checkpointing={checkpointing}", "validation.at_end=false")
    model = watched[-1].run.model
    reached = [any(p.grad is not None and p.grad.any() for p in entry.module.parameters()) for entry in model.blocks]
    assert reached == [True, True, False, False]
    assert all(p.grad is not None and p.grad.any() for p in model.extra["crepa"].parameters())


@EVERY_FAMILY
def test_checkpointing_changes_nothing(train, family):
    plain, again = (train(family, f"is-{on}", "block = 1", "", f"run.gradient_checkpointing={on}") for on in ("false", "true"))
    assert plain.steps[3]["loss"] == pytest.approx(again.steps[3]["loss"], rel=1e-5)


def test_samples_that_keep_what_the_model_knows_are_not_aligned(train, watched):
    train("sana", "run", "block = 1", LORA, "datasets.0.is_regularisation=true")
    assert watched
    assert all(not one.loss.terms for one in watched)
    assert watched[0].loss.total.item() == 0


def test_with_a_cache_the_encoder_is_called_once_a_sample_and_never_while_training(train, watched, monkeypatch):
    calls = counted(monkeypatch)
    train("sana_video", "run", "", "", "run.steps=5")
    assert calls == ["caching"] * 3
    assert crepa_of(watched[0].run).encoder.network is None
    train("sana_video", "again", "", "", "run.steps=5")
    assert calls == ["caching"] * 3


def test_without_a_cache_the_encoder_is_called_in_every_step_until_the_weight_is_zero_for_good(train, monkeypatch):
    calls = counted(monkeypatch)
    result = train("sana_video", "run", "cutoff_step = 3", "", "run.steps=12", "run.cache=false")
    assert [result.steps[step]["crepa_weight"] for step in (1, 3, 4, 12)] == [0.5, 0.5, 0.0, 0.0]
    assert [result.steps[step]["crepa_cutoff"] for step in (3, 4)] == [0.0, 1.0]
    assert 3 <= len(calls) < 12 - 3


def test_where_values_are_kept_changes_no_number_and_beside_what_they_were_encoded_no_more_than_rounding(train, tmp_path):
    runs = {"disk": "true", "memory": "'memory'"}
    own, kept = (train("sana_video", name, "", "", "run.batch_size=2", f"run.cache={cache}").steps for name, cache in runs.items())
    assert own == kept
    filled = f"run.cache_dir={str(tmp_path / 'filled')!r}"
    train("sana_video", "one-by-one", "", "", "run.batch_size=1", "run.steps=1", filled)
    warm = train("sana_video", "warm", "", "", "run.batch_size=2", filled).steps
    assert [told["loss"] for told in warm.values()] == pytest.approx([told["loss"] for told in own.values()], rel=1e-5)


def test_once_cut_off_nothing_is_projected_compared_or_read(train, watched):
    result = train("sana_video", "run", "similarity_threshold = 1e-9\nsimilarity_decay = 0", "", "run.steps=30")
    cut = [number for number, told in result.steps.items() if told["crepa_weight"] == 0]
    assert cut
    assert cut == list(range(cut[0], 31))
    after = [one for one in watched if one.step.index + 1 >= cut[0]]
    assert all("crepa_alignment_score" not in one.step.metrics for one in after)
    assert all(not one.loss.terms for one in after)
    assert all("crepa_features" in one.step.batch.fields for one in watched if one.step.index + 1 < cut[0])
    assert "crepa_features" not in watched[-1].step.batch.fields


def test_where_it_may_recover_it_goes_on_comparing_and_the_weight_comes_back(train, watched, monkeypatch):
    """With no decay the average is the last step's cosine; each step goes by the one before it."""
    cosines = [0.2, 0.9, 0.7, 0.4, 0.1, 0.8]
    given = iter(cosines)

    def with_cosine(*args):
        score, mean, own = align(*args)
        return score, torch.full_like(mean, next(given)), own

    monkeypatch.setattr(plugin, "align", with_cosine)
    settings = "similarity_threshold = 0.5\nsimilarity_decay = 0.0\nrecoverable = true"
    steps = train("sana_video", "run", settings, "", "run.steps=6").steps
    assert [steps[step]["crepa_weight"] for step in range(1, 7)] == [0.5, 0.5, 0.0, 0.0, 0.5, 0.5]
    assert [steps[step]["crepa_cutoff"] for step in range(1, 7)] == [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]
    assert [steps[step]["crepa_alignment_score_ema"] for step in range(2, 7)] == pytest.approx(cosines[:5])
    assert [bool(one.loss.terms) for one in watched] == [True, True, False, False, True, True]


@pytest.mark.parametrize(
    "settings", ["similarity_threshold = 1e-9\nsimilarity_decay = 0.5", "similarity_threshold = 0.9\nrecoverable = true"]
)
def test_stop_and_resume_equals_never_stopping(train, monkeypatch, settings):
    extra = "[checkpoints]\nevery = 4\n" + LORA
    straight = train("sana_video", "straight", settings, extra, "run.steps=8")
    milestones = Trainer.milestones

    def interrupted(self):
        milestones(self)
        if self.run.step == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "milestones", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train("sana_video", "resumed", settings, extra, "run.steps=8")
    monkeypatch.setattr(Trainer, "milestones", milestones)
    resumed = train("sana_video", "resumed", settings, extra, "run.steps=8")
    assert resumed.steps == straight.steps
    assert resumed.state(8)["plugins"]["crepa"] == straight.state(8)["plugins"]["crepa"]
    assert straight.state(8)["plugins"]["crepa"]["average"] is not None


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("block = 4", r"block = 4: sana_video has the blocks 0 to 3"),
        ('source = "backbone"\nblock = 1\nteacher_block = 9', r"teacher_block = 9: sana_video has the blocks 0 to 3"),
        ('source = "backbone"\nblock = 2\nteacher_block = 1', r"goes with a teacher_block that comes after block 2"),
        ('source = "backbone"', r'source = "backbone" goes with a teacher_block'),
        ("teacher_block = 3", r'source = "backbone" goes with a teacher_block'),
        ('encoder = "nobody/nothing"', r"encoder = 'nobody/nothing': nobody/nothing is not in the local cache"),
        ('encoder = "dinov2_vitb14"', r"facebook/dinov2-base is not in the local cache"),
        ('encoder = "dinov2_vitl14_reg"', r"facebook/dinov2-with-registers-large is not in the local cache"),
        ('encoder = "{twin}"', r"has no config.json; it must be laid out as a model's `save_pretrained` writes it"),
        ('encoder = "no such name"', r"neither a local folder nor a Hub id"),
        ('encoder = "{twin}/vae"', r"holds AutoencoderKLWan; crepa takes one of dinov2, dinov2_with_registers"),
    ],
)
def test_what_cannot_work_is_told_before_anything_is_loaded(write, twin_of, settings, told):
    with pytest.raises(ConfigErrors, match=told):
        assemble(write("sana_video", "wrong", settings.replace("{twin}", str(twin_of("sana_video")))))


def test_an_edge_that_is_no_whole_patches_is_refused(write):
    with pytest.raises(ConfigErrors, match="multiple of 14"):
        write("sana", "wrong", "", "", "plugins.crepa.image_size=500")


def test_what_features_cost_is_told(write):
    config = write("sana_video", "cost")
    (told,) = remarks(config, assemble(config))
    defaults = assemble(config).family.defaults
    size, tokens = "x".join(map(str, defaults.size)), assemble(config).family.token_grid(defaults.frames, *reversed(defaults.size)).tokens
    assert told == (
        f"crepa: features of a sample of {size} with {defaults.frames} frames take {tokens * WIDTH * 2 / 1e6:.1f} MB of the cache; "
        "those of a smaller encoder take less"
    )
    config = write("sana_video", "cost", "", "", "run.cache=false")
    (told,) = remarks(config, assemble(config))
    assert "take the encoder's time for 21 frames in every step" in told
    config = write("sana_video", "cost", 'source = "backbone"\nteacher_block = 3')
    assert remarks(config, assemble(config)) == []


def test_the_families_own_block_is_aligned_where_none_is_named(write):
    for family in FAMILIES:
        cast = assemble(write(family, "own"))
        (crepa,) = (one for one in cast.hooks.plugins if isinstance(one, Crepa))
        assert crepa.reads_blocks(cast.family) == [cast.family.defaults.aligned_block]


def test_pictures_are_clips_of_one_frame(train, watched):
    train("sana", "run")
    tokens = watched[0].run.model.token_grid(watched[0].step.noisy).tokens
    assert watched[0].step.batch.ragged("crepa_features").values[0].shape == (tokens, WIDTH)
    assert all(torch.equal(one.step.metrics["crepa_alignment_score"], one.step.metrics["crepa_similarity_self"]) for one in watched)


def test_the_projector_starts_as_a_function_of_the_seed(train, watched):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train("sana", name, "", "", "run.steps=1", f"run.seed={seed}", "optimizer.lr=1e-30")
    first, again, other = (one.run.model.extra["crepa"][1].weight for one in watched)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.abs().max() <= first.shape[1] ** -0.5
