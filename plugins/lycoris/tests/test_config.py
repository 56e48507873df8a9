"""What settings and lycoris_config.json may say, and which layers they mean, compared with LyCORIS' own choice."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import SanaTransformer2DModel
from lycoris import LycorisNetwork, create_lycoris
from pydantic import ValidationError
from torch import nn

from tunesmith import InputError
from tunesmith_lycoris import Lycoris, LycorisSettings
from tunesmith_lycoris.adapters import Adapters, key_of
from tunesmith_lycoris.config import NetworkConfig, from_settings, read_config
from tunesmith_lycoris.targets import select_layers

from .conftest import Trained, stand_in
from .test_files import presets_of_its_own

COMMON: dict[str, Any] = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, "factor": 4, "full_matrix": True}
FOUND: list[dict[str, Any]] = [
    {
        **COMMON,
        "bypass_mode": True,
        "apply_preset": {"target_module": ["Attention", "GLUMBConv"], "module_algo_map": {"Attention": {"factor": 2}}},
    },
    {**COMMON, "apply_preset": {"target_module": ["SanaTransformer2DModel"], "module_algo_map": {"SanaTransformer2DModel": {"factor": 8}}}},
    {**COMMON, "apply_preset": {"target_module": ["SanaTransformerBlock"], "module_algo_map": {"GLUMBConv": {"algo": "loha", "dim": 2}}}},
    {"algo": "lora", "multiplier": 1, "linear_dim": 4, "linear_alpha": 2, "conv_dim": 2, "conv_alpha": 1},
    {
        "algo": "loha",
        "multiplier": 1,
        "linear_dim": 4,
        "linear_alpha": 2,
        "apply_preset": {"target_module": ["Attention"], "exclude_name": [r".*to_v"]},
    },
    {
        "algo": "locon",
        "multiplier": 1,
        "linear_dim": 4,
        "linear_alpha": 4,
        "apply_preset": {
            "target_module": [],
            "target_name": ["*.attn1.to_q", "proj_out"],
            "name_algo_map": {"*.attn2.to_[kv]": {"algo": "lokr", "dim": 1, "alpha": 1}},
            "use_fnmatch": True,
        },
    },
]


def options_of(lora: Any) -> tuple[str, int, float, list[tuple[int, ...]]]:
    """What can be compared of an adapter of LyCORIS."""
    return type(lora).__bases__[-1].__name__, lora.lora_dim, float(lora.scale), [tuple(value.shape) for value in lora.parameters()]


@pytest.mark.parametrize("content", FOUND, ids=["maps", "whole", "inner", "every", "excluded", "names"])
def test_a_config_that_people_have_makes_the_network_that_lycoris_makes_of_it(
    twin: Path, written: Callable[..., Path], make: Callable[..., Trained], content: dict[str, Any]
) -> None:
    trained = make(config=written(**content))
    with presets_of_its_own():
        arguments = {key: value for key, value in content.items() if key not in ("apply_preset", "multiplier")}
        LycorisNetwork.apply_preset(content.get("apply_preset", {}))
        network = create_lycoris(SanaTransformer2DModel.from_pretrained(twin / "transformer"), 1.0, **arguments)
    theirs = {one.lora_name: (type(one).__name__, *options_of(one)[1:]) for one in network.loras}
    ours = {key_of(path): options_of(one.adapter) for path, one in trained.plugin.adapters.layers.items()}
    assert ours == theirs


def test_no_preset_is_applied_to_the_class_that_all_networks_share(make: Callable[..., Trained], written: Callable[..., Path]) -> None:
    before = {name: value for name, value in vars(LycorisNetwork).items() if name.isupper()}
    make(config=written(**FOUND[0]))
    assert {name: value for name, value in vars(LycorisNetwork).items() if name.isupper()} == before


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ({"algoo": "lokr"}, r'"algoo" is unknown; did you mean "algo"\?'),
        ({"multiplier": 0.5}, r'"multiplier": an adapter is trained as strong as it is used: set it to 1.*not 0\.5'),
        ({"use_scalar": True}, r'"use_scalar" cannot be used: the scale is folded'),
        ({"algo": "boft"}, r'"algo": .*\'lokr\', \'loha\', \'locon\'.* and not \'boft\''),
        ({"factor": 0}, r'"factor": 0 is no size'),
        (
            {"apply_preset": {"target_modules": ["Attention"]}},
            r'"target_modules" in apply_preset is unknown; did you mean "target_module"\?',
        ),
        ({"apply_preset": {"unet_target_name": ["a"]}}, r'"unet_target_name" in apply_preset cannot be used: LyCORIS reads "target_name"'),
        (
            {"apply_preset": {"module_algo_map": {"Attention": {"linear_dim": 4}}}},
            r'in apply_preset\.module_algo_map\.Attention .*it is called "dim"',
        ),
        (
            {"apply_preset": {"module_algo_map": {"Attention": {"rank": 4}}}},
            r'"rank" in apply_preset\.module_algo_map\.Attention is unknown; known are algo, dim, alpha, factor',
        ),
        (
            {"apply_preset": {"module_algo_map": {"Attention": {"dim": 0, "factor": 0}}}},
            r'"dim" in .* and not 0; "factor" in .*: 0 is no size of a factor',
        ),
        (
            {"apply_preset": {"target_module": ["Attention", "FeedForward"]}},
            r"no modules of the class FeedForward .*Attention, GLUMBConv",
        ),
        ({"apply_preset": {"target_module": [], "target_name": ["attn1"]}}, r"'attn1' matches no Linear.*the nearest are attn1\.to_"),
        (
            {"apply_preset": {"target_module": ["Attention"], "name_algo_map": {r".*attn1\.to_q": {"factor": 2}}, "module_algo_map": {}}},
            r"reaches only layers of SanaTransformer2DModel that other targets have reached before",
        ),
        (
            {"apply_preset": {"target_module": ["Attention", "SanaTransformerBlock"]}},
            r"within Attention are adapted by other targets already",
        ),
        ({"apply_preset": {"exclude_name": ["."]}}, r"no layer of SanaTransformer2DModel is adapted"),
        ({"dora_wd": True, "bypass_mode": True}, r"DoRA of lokr cannot be added to what a layer gives"),
        ({"rank_dropout": 0.1}, r"`rank_dropout` of lokr is drawn on the CPU"),
        ({"decompose_both": True, "full_matrix": True}, r"`decompose_both` does nothing with `full_matrix`"),
    ],
)
def test_what_cannot_be_used_of_a_config_is_a_problem_by_name(
    twin: Path, written: Callable[..., Path], content: dict[str, Any], complaint: str
) -> None:
    _, run = stand_in(twin)
    file = written(**{"algo": "lokr", "multiplier": 1, "linear_dim": 4, "linear_alpha": 1, **content})
    [(key, sentence), *_] = Lycoris("lycoris", LycorisSettings(config=file)).check(run.config, run.family)
    assert key == ("plugins", "lycoris", "config")
    assert re.search(complaint, sentence), sentence


def test_what_is_no_config_is_told(tmp_path: Path, twin: Path) -> None:
    _, run = stand_in(twin)
    for content, complaint in (
        (None, "there is no file"),
        ("{", "is no JSON"),
        ("[]", "holds no object"),
        ("{}", '"linear_dim": Field required'),
    ):
        file = tmp_path / "lycoris_config.json"
        if content is not None:
            file.write_text(content)
        [(_, sentence)] = Lycoris("lycoris", LycorisSettings(config=file)).check(run.config, run.family)
        assert complaint in sentence


def test_keys_of_a_config_that_its_algorithm_does_not_read_are_told(twin: Path, written: Callable[..., Path]) -> None:
    _, run = stand_in(twin)
    maps = {"Attention": {"factor": 16}, "GLUMBConv": {"algo": "ia3", "dim": 2, "weight_decompose": True}}
    file = written(
        algo="lora",
        multiplier=1,
        linear_dim=4,
        linear_alpha=2,
        full_matrix=False,
        apply_preset={"target_module": ["Attention"], "module_algo_map": maps},
    )
    remarks = list(Lycoris("lycoris", LycorisSettings(config=file)).remarks(run.config, run.family))
    assert [one for one in remarks if one.startswith(("adapts", '"'))] == [
        "adapts 12 layers by (IA)^3, 32 layers by LoCon",
        '"factor" of "Attention" does nothing with locon',
        '"weight_decompose" of "GLUMBConv" does nothing with ia3',
        '"dim" of "GLUMBConv" does nothing with ia3',
    ]


def test_arguments_that_count_for_nothing_in_layers_so_small_are_told(twin: Path) -> None:
    _, run = stand_in(twin)

    def told(**settings: Any) -> str:
        return " ".join(Lycoris("lycoris", LycorisSettings(**settings)).remarks(run.config, run.family))

    assert "rank and alpha count for nothing in 32 layers" in told(rank=4)  # 32 x 32 is 4 x 4 times 8 x 8
    assert "count for nothing" not in told(rank=3)
    assert "decompose_both counts for nothing" in told(rank=3, decompose_both=True)
    assert "decompose_both" not in told(rank=1, decompose_both=True)
    assert "use_tucker counts for nothing" in told(rank=3, use_tucker=True)
    assert "use_tucker" not in told(rank=3, use_tucker=True, targets=("to_q", "conv_depth"))
    assert "count for nothing" not in told(full_matrix=True)


def test_layers_that_make_a_second_weight_are_told_with_what_it_takes(twin: Path) -> None:
    _, run = stand_in(twin)

    def told(**settings: Any) -> str:
        return " ".join(Lycoris("lycoris", LycorisSettings(rank=1, **settings)).remarks(run.config, run.family))

    assert "second weight" not in told()
    assert "second weight" not in told(algo="locon")
    assert "32 layers make a second weight" in told(dora_wd=True)
    assert "32 layers make a second weight" in told(algo="loha")
    assert "36 layers make" in told(algo="loha", targets=("to_q", "to_k", "to_v", "to_out.0", "conv_depth"))


def test_alpha_is_the_rank_of_each_layer_unless_it_is_given(twin: Path) -> None:
    _, run = stand_in(twin)

    def alphas(**settings: Any) -> tuple[float, float]:
        config = from_settings(LycorisSettings.model_validate({"algo": "locon", "overrides": {"to_q": {"rank": 3}}, **settings}), ("to_k",))
        layers = select_layers(run.family.on_meta(), config)
        return layers["transformer_blocks.0.attn1.to_k"].alpha, layers["transformer_blocks.0.attn1.to_q"].alpha

    assert alphas(rank=8) == (8, 3)
    assert alphas(rank=8, alpha=2) == (2, 2)
    assert alphas(rank=8, alpha=2, overrides={"to_q": {"rank": 3, "alpha": 1}}) == (2, 1)
    assert read_alpha({"linear_dim": 6}) == 6


def read_alpha(content: dict[str, Any]) -> float:
    options = NetworkConfig(**content).options(None, wide=False)
    assert options is not None
    return options.alpha


def test_targets_and_overrides_are_endings_of_names_or_patterns_of_whole_paths(make: Callable[..., Trained]) -> None:
    settings = {"targets": ["attn1.to_q", "proj_out"], "overrides": {r".*\.0\.attn1\.to_(q|k)": {"algo": "loha", "rank": 2}}, "rank": 1}
    layers = make(**settings).plugin.adapters.layers
    expected = {f"transformer_blocks.{number}.attn1.to_q": "lokr" for number in (1, 2, 3)}
    expected |= {f"transformer_blocks.0.attn1.to_{side}": "loha" for side in "qk"}
    assert {path: one.options.algo for path, one in layers.items()} == {**expected, "proj_out": "lokr"}


@pytest.mark.parametrize(
    ("settings", "key", "complaint"),
    [
        ({"targets": ["to_qq"]}, "targets", r"'to_qq' matches no .* layer of SanaTransformer2DModel; the nearest are to_q"),
        ({"targets": ["mlp.w1.zz"]}, "targets", r"there are proj, .*to_out\.0.*conv_point"),
        ({"overrides": {"to_z": {"rank": 2}}}, "overrides", r"'to_z' matches no"),
        ({"targets": ["out.0"]}, "targets", r"'out\.0' matches no"),
    ],
)
def test_a_target_that_cannot_be_adapted_is_a_problem_of_the_config(twin: Path, settings: dict[str, Any], key: str, complaint: str) -> None:
    _, run = stand_in(twin)
    [(found, sentence)] = Lycoris("lycoris", LycorisSettings.model_validate(settings)).check(run.config, run.family)
    assert found == ("plugins", "lycoris", key)
    assert re.search(complaint, sentence), sentence


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"algo": "loha", "factor": 4}, r"`factor` does nothing with loha: it is for lokr"),
        ({"algo": "ia3", "rank": 4}, r"`rank` does nothing with ia3: it is for locon, loha, lokr"),
        ({"algo": "full", "dropout": 0.1}, r"`dropout` does nothing with full"),
        ({"train_on_input": True}, r"`train_on_input` does nothing with lokr: it is for ia3"),
        ({"overrides": {"to_q": {"algo": "loha", "factor": 2}}}, r"`factor` does nothing with loha for 'to_q'"),
        ({"overrides": {"to_q": {}}}, r"nothing is other for 'to_q'"),
        ({"full_matrix": True, "rank": 4}, r"`rank` does nothing with `full_matrix`"),
        ({"full_matrix": True, "alpha": 4}, r"`alpha` does nothing with `full_matrix`"),
        ({"overrides": {"to_q": {"full_matrix": True, "rank": 4}}}, r"`rank` does nothing with `full_matrix`"),
        ({"dora_wd": True, "overrides": {"to_q": {"dora_wd": False, "wd_on_output": False}}}, r"`wd_on_output` does nothing"),
        ({"wd_on_output": False}, r"`wd_on_output` does nothing without `dora_wd`"),
        ({"factor": 0}, r"0 is no size of a factor"),
        ({"targets": []}, r"at least 1"),
        ({"targets": ["to_(q"]}, r"'to_\(q' is no regular expression"),
        ({"overrides": {"to_(q": {"rank": 2}}}, r"'to_\(q' is no regular expression"),
        ({"config": "a.json", "rank": 4}, r"`rank` and `config` together: the file says what is trained"),
    ],
)
def test_a_setting_that_would_do_nothing_is_a_mistake_in_the_config(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        LycorisSettings.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"dora_wd": True, "bypass_mode": True}, r"DoRA of lokr cannot be added"),
        ({"dora_wd": True, "dropout": 0.1}, r"`dropout` does nothing where the update of lokr is added to the weight"),
        ({"bypass_mode": False, "dropout": 0.1}, r"`dropout` does nothing where"),
        ({"algo": "locon", "dropout": 0.1, "rank_dropout": 0.1}, r"`dropout` and `rank_dropout` together"),
    ],
)
def test_settings_that_exclude_each_other_are_a_problem(twin: Path, settings: dict[str, Any], complaint: str) -> None:
    _, run = stand_in(twin)
    [(key, sentence)] = Lycoris("lycoris", LycorisSettings.model_validate(settings)).check(run.config, run.family)
    assert key == ("plugins", "lycoris")
    assert re.search(complaint, sentence), sentence


def test_a_config_is_written_as_it_is_read(written: Callable[..., Path]) -> None:
    decomposed = {"Attention": {"algo": "lora", "dim": 2, "weight_decompose": True, "wd_on_out": False}}
    for content in (*FOUND, {**COMMON, "apply_preset": {"module_algo_map": decomposed}}):
        config = read_config(written(**content))
        again = NetworkConfig.model_validate_json(config.as_json())
        assert again == config.model_copy(update={"linear_alpha": float(config.linear_alpha or 0)})
    assert json.loads(config.as_json())["apply_preset"]["module_algo_map"] == {"Attention": {**decomposed["Attention"], "algo": "locon"}}


def test_two_layers_of_one_name_in_a_file_are_refused() -> None:
    network = nn.ModuleDict({"a_b": nn.Linear(4, 4), "a": nn.ModuleDict({"b": nn.Linear(4, 4)})})
    config = NetworkConfig(linear_dim=2)
    with pytest.raises(InputError, match="the same name in a file"):
        Adapters(network, select_layers(network, config), config)
