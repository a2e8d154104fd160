"""MInference's JSON and DuoAttention's TSV: read, written, refused by name."""

import json

import pytest

from sparse_attn.errors import PatternFileError
from sparse_attn.plan.formats import read_duo, read_minference, streaming_heads, write_duo, write_minference
from sparse_attn.plan.patterns import AntiDiagonal, AShape, BlockTopK, Dense, VerticalSlash


def test_minference_is_read_as_published(tmp_path):
    path = tmp_path / "Llama.json"
    path.write_text(
        json.dumps(
            [
                {"0": ["vertical_and_slash", 1000, 6096, 336382.12], "1": ["stream_llm", 128, 1024, 0.9]},
                {"1": ["block_sparse", 8, 1, 0.5], "0": ["vertical_and_slash", 30, 800, 1.0]},
            ]
        )
    )
    assert read_minference(path) == (
        (VerticalSlash(1000, 6096), AShape(128, 1024)),
        (VerticalSlash(30, 800), BlockTopK(100)),
    )


def test_minference_round_trip(tmp_path):
    table = ((VerticalSlash(5, 6), Dense()), (BlockTopK(8), AShape(1, 2)))
    write_minference(tmp_path / "p.json", table, [[0.5, 1.0], [0.25, 0.125]])
    assert read_minference(tmp_path / "p.json") == table
    assert json.loads((tmp_path / "p.json").read_text())[0]["0"] == ["vertical_and_slash", 5, 6, 0.5]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ('{"0": 1}', "not a MInference pattern file"),
        ("[]", "not a MInference pattern file"),
        ('[{"0": ["vertical_and_slash", 1, 2, 1], "2": ["stream_llm", 1, 2, 1]}]', "heads 0 to 1, each once"),
        ('[{"0": ["spiral", 1, 2, 1]}]', "layer 0, head 0: unknown pattern 'spiral'"),
        ('[{"0": ["stream_llm", "x", 2, 1]}]', r"layer 0, head 0: .* is not \[pattern"),
        ('[{"0": ["stream_llm", -1, 2, 1]}]', "negative"),
        ('[{"0": ["stream_llm", 1, 2, 1]}, {}]', "differ in their number of heads"),
    ],
)
def test_malformed_minference_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(PatternFileError, match=message):
        read_minference(path)


def test_a_pattern_without_a_name_in_the_format_is_refused(tmp_path):
    with pytest.raises(PatternFileError, match="layer 0, head 0: MInference's format has no AntiDiagonal"):
        write_minference(tmp_path / "p.json", [[AntiDiagonal()]])


def test_duo_round_trip_clips_and_takes_a_folder(tmp_path):
    write_duo(tmp_path / "full_attention_heads.tsv", [[0.25, 1.5], [-1.0, 0.125]])
    assert read_duo(tmp_path) == ((0.25, 1.0), (0.0, 0.125))


@pytest.mark.parametrize("text", ["", "0.1\t0.2\n0.3\n", "0.1\tx\n"])
def test_malformed_duo_is_refused(tmp_path, text):
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(PatternFileError, match="not a DuoAttention table"):
        read_duo(tmp_path / "a.tsv")


def test_missing_files_are_named(tmp_path):
    for read in (read_duo, read_minference):
        with pytest.raises(PatternFileError, match=r"nowhere.* cannot be read"):
            read(tmp_path / "nowhere")


def test_the_quantile_is_over_the_model_and_ties_do_not_matter():
    assert streaming_heads([[0.9, 0.8], [0.1, 0.2]], 0.5) == ((), (0, 1))
    assert streaming_heads([[0.5, 0.5], [0.5, 0.5]], 0.25) == ((0,), ())
    assert streaming_heads([[0.5, 0.1]], 0.0) == ((),)
    assert streaming_heads([[0.5, 0.1]], 1.0) == ((0, 1),)
