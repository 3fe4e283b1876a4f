import json
import logging
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aoq import (
    AOBaseConfig,
    FqnToConfig,
    Int4WeightOnlyConfig,
    Int8WeightOnlyConfig,
    MappingType,
    ModuleFqnToConfig,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    config_from_dict,
    config_to_dict,
)
from aoq.config import decode, encode

GOLDEN = Path(__file__).parent / "golden"
SYMMETRIC = Int4WeightOnlyConfig(32, mapping_type=MappingType.SYMMETRIC, scale_dtype=torch.float32)


@pytest.mark.parametrize(
    ("file", "config"),
    [
        ("int4_weight_only_hqq", Int4WeightOnlyConfig(group_size=128, use_hqq=True)),
        ("int4_weight_only_torchao", Int4WeightOnlyConfig(group_size=64, use_hqq=True)),
        ("module_fqn_to_config", FqnToConfig({"_default": Int8WeightOnlyConfig(), "model.embed_tokens": None})),
        ("fqn_to_config", FqnToConfig({"re:.*mlp.*": SYMMETRIC, "lm_head": None})),
    ],
)
def test_golden_files_load_forever(file: str, config: AOBaseConfig) -> None:
    assert config_from_dict(json.loads((GOLDEN / f"{file}.json").read_text())) == config


def test_what_is_written_is_the_documented_json() -> None:
    config = FqnToConfig({"re:.*mlp.*": SYMMETRIC, "lm_head": None})
    assert config_to_dict(config) == json.loads((GOLDEN / "fqn_to_config.json").read_text())


@given(
    group_size=st.integers(8, 4096),
    use_hqq=st.booleans(),
    scale_dtype=st.sampled_from([None, torch.bfloat16, torch.float16, torch.float32]),
)
def test_round_trip_through_json(group_size: int, use_hqq: bool, scale_dtype: torch.dtype | None) -> None:
    config = FqnToConfig({"a.b": Int4WeightOnlyConfig(group_size, use_hqq, scale_dtype=scale_dtype), "re:c.*": None})
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (PerRow(), {"_type": "PerRow", "_version": 1, "_data": {"dim": -1}}),
        (PerTensor(), {"_type": "PerTensor", "_version": 1, "_data": {}}),
        (PerToken(), {"_type": "PerToken", "_version": 1, "_data": {}}),
        (PerAxis(0), {"_type": "PerAxis", "_version": 1, "_data": {"axis": 0}}),
        (PerGroup(32), {"_type": "PerGroup", "_version": 1, "_data": {"group_size": 32}}),
        (PerBlock((1, 128)), {"_type": "PerBlock", "_version": 1, "_data": {"block_size": [1, 128]}}),
        (MappingType.SYMMETRIC, {"_type": "MappingType", "_data": "SYMMETRIC"}),
        (torch.int4, {"_type": "torch.dtype", "_data": "int4"}),
    ],
)
def test_values_that_configs_hold(value: object, written: dict[str, object]) -> None:
    assert encode(value, "value") == written
    assert decode(json.loads(json.dumps(written)), "value") == value


def test_unknown_type_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown _type 'Int5Config'.*FqnToConfig.*Int4WeightOnlyConfig"):
        config_from_dict({"_type": "Int5Config", "_data": {}})


@pytest.mark.parametrize("name", ["torch.nn.Linear", "os.system", "aoq.config.FqnToConfig", "Path", ["x"], None])
def test_nothing_but_configs_is_looked_up(name: object) -> None:
    with pytest.raises(ValueError, match="unknown _type"):
        config_from_dict({"_type": name, "_data": {}})  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"_type": "torch.dtype", "_data": "bfloat16"}, "expected a config"),
        ({"_type": "PerRow", "_data": {}}, "expected a config"),
        ({"group_size": 3}, "expected a config"),
        ({"_type": "Int4WeightOnlyConfig", "_data": [1]}, "expected _data to be a dict"),
        ({"_type": "Int4WeightOnlyConfig", "_data": {"group_size": "128"}}, r"group_size: expected int, got '128'"),
        ({"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 0}}, "group_size: expected 8 or more, got 0"),
        (
            {"_type": "Int4WeightOnlyConfig", "_data": {"scale_dtype": {"_type": "torch.dtype", "_data": "nn"}}},
            "scale_dtype: torch.dtype: unknown name 'nn'; known: .*bfloat16",
        ),
        (
            {"_type": "Int4WeightOnlyConfig", "_data": {"mapping_type": {"_type": "MappingType", "_data": "mro"}}},
            "unknown name 'mro'; known: ASYMMETRIC, SYMMETRIC",
        ),
        (
            {"_type": "FqnToConfig", "_data": {"fqn_to_config": {"a": {"_type": "PerRow", "_data": {}}}}},
            "FqnToConfig: a",
        ),
        ({"_type": "FqnToConfig", "_data": {"fqn_to_config": {"re:(": None}}}, r"re:\(: bad pattern"),
    ],
)
def test_bad_json_is_one_clear_error(data: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        config_from_dict(data)  # type: ignore[arg-type]


def test_a_missing_field_is_named() -> None:
    with pytest.raises(TypeError, match=r"PerGroup.*group_size"):
        decode({"_type": "PerGroup", "_data": {}}, "granularity")


def test_fields_of_other_versions_are_noted_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    data = {"group_size": 32, "layout": {"_type": "NotEvenDefined"}, "version": 7, "brand_new": [1]}
    with caplog.at_level(logging.WARNING, logger="aoq"):
        assert config_from_dict({"_type": "Int4WeightOnlyConfig", "_version": 99, "_data": data}) == (
            Int4WeightOnlyConfig(group_size=32)
        )
    assert [record.getMessage() for record in caplog.records] == [
        "Int4WeightOnlyConfig: no effect here: brand_new, layout, version"
    ]


def test_a_config_that_is_defined_anywhere_is_known_by_its_name() -> None:
    @dataclass
    class ThirdPartyConfig(AOBaseConfig):
        bits: int = 3

    assert config_from_dict(config_to_dict(ThirdPartyConfig(bits=5))) == ThirdPartyConfig(bits=5)
    with pytest.raises(TypeError, match="named Int4WeightOnlyConfig already exists"):
        type("Int4WeightOnlyConfig", (AOBaseConfig,), {})
    assert type(config_from_dict({"_type": "Int4WeightOnlyConfig", "_data": {}})) is Int4WeightOnlyConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"group_size": 4}, "group_size: expected 8 or more"),
        ({"group_size": True}, "group_size: expected int"),
        ({"use_hqq": 1}, "use_hqq: expected bool"),
        ({"mapping_type": "symmetric"}, "mapping_type: expected MappingType"),
        ({"scale_dtype": torch.int8}, "scale_dtype: expected a float dtype"),
        ({"use_hqq": True, "mapping_type": MappingType.SYMMETRIC}, "use_hqq: HQQ optimizes zero points"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=f"Int4WeightOnlyConfig.{message}"):
        Int4WeightOnlyConfig(**settings)  # type: ignore[arg-type]


# ---- FqnToConfig


A, B, C, D, E = (Int4WeightOnlyConfig(group_size=8 * size) for size in range(1, 6))


def test_the_order_of_rules() -> None:
    rules: dict[str, AOBaseConfig | None] = {
        "_default": E,
        "re:.*up_proj": D,
        "re:.*up_proj.weight": C,
        "layers.0.up_proj": B,
        "layers.0.up_proj.weight": A,
    }
    config = FqnToConfig(rules)

    def found() -> AOBaseConfig | None:
        key = config.find("layers.0.up_proj", "weight", is_linear=True)
        return config.fqn_to_config.pop(key) if key else None

    assert [found() for _ in range(6)] == [A, B, C, D, E, None]


def test_the_first_pattern_wins_and_patterns_match_whole_names() -> None:
    config = FqnToConfig({"re:up": A, "re:.*up": B, "re:.*": C})
    assert config.find("layers.0.up", "weight", True) == "re:.*"  # a pattern for the parameter comes first
    config = FqnToConfig({"re:up": A, "re:.*up": B, "re:layers.*up": C})
    assert config.find("layers.0.up", "weight", True) == "re:.*up"
    assert config.find("layers.0.upper", "weight", True) is None


def test_default_is_for_linears_only() -> None:
    config = FqnToConfig({"_default": A})
    assert config.find("embed", "weight", is_linear=False) is None
    assert config.find("", "weight", is_linear=True) == "_default"


def test_both_names_of_the_rules_are_one() -> None:
    assert ModuleFqnToConfig is FqnToConfig
    assert FqnToConfig(module_fqn_to_config={"a": A}).fqn_to_config == {"a": A}
    assert FqnToConfig({"a": A}).module_fqn_to_config == {"a": A}
    with pytest.raises(ValueError, match="differ"):
        FqnToConfig({"a": A}, {"a": B})


def test_rules_must_be_configs() -> None:
    with pytest.raises(TypeError, match="a: expected None or the config of one weight"):
        FqnToConfig({"a": FqnToConfig({})})
    with pytest.raises(TypeError, match="expected a dict"):
        FqnToConfig([A])  # type: ignore[arg-type]
