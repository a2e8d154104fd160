"""Families of instructions: which the machine has, and that FOLIO_CPU_FEATURES chooses among them."""

import pytest

from sparse_attn.errors import UnknownInstructions
from sparse_attn.kernels.cpu import features


@pytest.fixture(autouse=True)
def afresh():
    features.family.cache_clear()
    yield
    features.family.cache_clear()


@pytest.mark.parametrize(
    ("flags", "best"),
    [
        ("sse2", "portable"),
        ("avx2 fma f16c avx512f", "avx2"),
        ("avx2 fma f16c avx512f avx512bw avx512cd avx512dq avx512vl avx512_bf16", "avx512"),
        ("avx2 fma f16c avx512f avx512bw avx512cd avx512dq avx512vl avx512_vnni avx512_bf16 amx_tile", "avx512_bf16"),
        (" ".join(flag for needed, _ in features.FAMILIES.values() for flag in needed), "amx"),
    ],
)
def test_the_best_family_of_a_processor_is_taken(monkeypatch, flags, best):
    monkeypatch.delenv(features.VARIABLE, raising=False)
    monkeypatch.setattr(features.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(features, "processor_flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(features, "_may_use_tiles", lambda: True)
    assert features.family() == best
    assert features.compiler_flags() == (*features.FAMILIES[best][1], "-mtune=native")
    assert features.multiplies_bfloat16() == (best in ("avx512_bf16", "amx"))


def test_a_system_that_withholds_the_tiles_leaves_the_next_family(monkeypatch):
    monkeypatch.delenv(features.VARIABLE, raising=False)
    monkeypatch.setattr(features.platform, "machine", lambda: "x86_64")
    every = frozenset(flag for needed, _ in features.FAMILIES.values() for flag in needed)
    monkeypatch.setattr(features, "processor_flags", lambda: every)
    monkeypatch.setattr(features, "_may_use_tiles", lambda: False)
    assert features.family() == "avx512_bf16"


def test_a_family_may_be_asked_for_and_one_that_is_missing_is_refused(monkeypatch):
    monkeypatch.setattr(features, "_present", lambda: ["portable", "avx2"])
    monkeypatch.setenv(features.VARIABLE, "portable")
    assert features.family() == "portable"
    features.family.cache_clear()
    monkeypatch.setenv(features.VARIABLE, "amx")
    with pytest.raises(
        UnknownInstructions, match="FOLIO_CPU_FEATURES=amx is none of what this machine has: portable, avx2"
    ):
        features.family()


def test_another_processor_builds_for_itself(monkeypatch):
    monkeypatch.delenv(features.VARIABLE, raising=False)
    monkeypatch.setattr(features.platform, "machine", lambda: "aarch64")
    assert (features.family(), features.compiler_flags()) == ("native", ("-march=native",))
