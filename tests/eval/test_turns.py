"""Files of prompts for the drafters' benchmark: Spec-Bench's, SPEED-Bench's, and what is neither."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eval.bench.drafting.turns import PLACEHOLDER, first_turns
from eval.errors import EvalError


def written(folder: Path, *rows: object) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def row(category: str, *turns: str) -> dict[str, object]:
    return {"question_id": "1", "category": category, "turns": list(turns)}


def test_first_turns_of_some_categories_come_in_order(tmp_path: Path, shared: Path) -> None:
    path = written(tmp_path, row("qa", "a", "b"), row("coding", "c"), row("rag", PLACEHOLDER), row("qa", "d"))
    assert first_turns(path, ["qa"]) == ["a", "d"]
    assert first_turns(path, ["coding", "qa"]) == ["a", "c", "d"]
    assert len(first_turns(shared / "spec_bench" / "question.jsonl", ["translation"])) == 80


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([row("rag", f"{PLACEHOLDER} USING SPECDEC_BENCH")], "row 1 of .*jsonl has a placeholder for its prompt"),
        ([row("rag", "a"), {"category": "rag"}], "row 2 of .* has no category or no turns"),
        ([row("rag", "a"), {"turns": ["a"]}], "row 2 of .* has no category or no turns"),
        ([row("rag", "a"), {"category": "rag", "turns": [7]}], "row 2 of .* has no category or no turns"),
        ([row("rag", "a"), '{"category": "ra'], "line 2 of .*: not JSON"),
        ([row("qa", "a")], "has no prompts of rag\\. It has qa"),
    ],
)
def test_what_is_malformed_is_refused_by_name(tmp_path: Path, rows: list[object], why: str) -> None:
    with pytest.raises(EvalError) as error:
        first_turns(written(tmp_path, *rows), ["rag"])
    assert re.search(why, error.value.detail)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(EvalError, match=r"there is no .*gone\.jsonl"):
        first_turns(tmp_path / "gone.jsonl", ["rag"])
    (tmp_path / "rows.parquet").write_bytes(b"nothing")
    with pytest.raises(EvalError, match=r"rows\.parquet is (no )?Parquet"):
        first_turns(tmp_path / "rows.parquet", ["rag"])
