"""What zero points and ragged groups cost: variants of aoq's own contenders, beside them in the same rounds.

aoq bench --contenders benchmarks/int4_variants.py --op int4_mm --op int8_int4_mm --only aoq
"""

from typing import Any

from .aoq import AoqInt4, AoqInt8Int4


class Int4WithoutZeros(AoqInt4):
    name = "aoq int4, no zero points"

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Int4WeightOnlyConfig(group_size, mapping_type=aoq.MappingType.SYMMETRIC)


class Int4Ragged(AoqInt4):
    name = "aoq int4, ragged groups"

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Int4WeightOnlyConfig(ragged(group_size))


class Int8Int4WithZeros(AoqInt8Int4):
    name = "aoq int8-int4, zero points"

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Int8DynamicActivationInt4WeightConfig(group_size, aoq.MappingType.ASYMMETRIC)


class Int8Int4Ragged(AoqInt8Int4):
    name = "aoq int8-int4, ragged groups"

    def config(self, group_size: int) -> Any:
        import aoq

        return aoq.Int8DynamicActivationInt4WeightConfig(ragged(group_size))


def ragged(group_size: int) -> int:
    """Three quarters, 96 of 128: the last group of a k that is a power of two is then shorter."""
    return group_size * 3 // 4
