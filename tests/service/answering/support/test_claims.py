"""An answer's claims: sentences, items, cells; not headings, code or rules; stable while the answer grows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.answering.support.claims import claims

ANSWER = """# Title
The bridge was built in 1887 by Mr. Smith. It has seven
arches. The trees are:

- Oak, which is old. It stands.
- Lime

```py
x = 1. A
```

| Model | Weight | Year |
|---|---|---|
| A1 | 12 kg | 2005 |
| B2 | 13 kg | |

**Sources**
Is this it?"""


def test_sentences_items_and_cells_with_what_belongs_to_them() -> None:
    found = [(claim.kind, claim.text, claim.context) for claim in claims(ANSWER)]
    assert found == [
        ("sentence", "The bridge was built in 1887 by Mr. Smith.", ""),
        ("sentence", "It has seven\narches.", ""),
        ("item", "Oak, which is old.", "The trees are:"),
        ("item", "It stands.", "The trees are:"),
        ("item", "Lime", "The trees are:"),
        ("cell", "12 kg", "A1 Weight"),
        ("cell", "2005", "A1 Year"),
        ("cell", "13 kg", "B2 Weight"),
        ("sentence", "Is this it?", ""),
    ]
    assert all(ANSWER[claim.start : claim.end] == claim.text for claim in claims(ANSWER))


@pytest.mark.parametrize(
    "text", ["", " \n", "# Heading", "---", "```\ncode. More.\n```", "**Bold heading**", "...", "| a |\n|---|"]
)
def test_what_claims_nothing(text: str) -> None:
    assert claims(text) == []


def test_only_the_last_claim_of_an_unfinished_text_is_not_whole() -> None:
    assert [claim.whole for claim in claims("One is here. Two is h", finished=False)] == [True, False]
    assert [claim.whole for claim in claims("One is here. Two is here.", finished=False)] == [True, False]
    assert [claim.whole for claim in claims("One is here. Two is h")] == [True, True]


_PIECES = [
    "The oak is old. ",
    "It costs 3.5 coins. ",
    "\n",
    "\n\n",
    "- an item\n",
    "1. First\n",
    "These are: ",
    "| a | b |\n",
    "|---|---|\n",
    "# H\n",
    "e.g. this ",
    "Dr. A. B. Who ",
    "```\n",
    "in ",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(_PIECES), max_size=14).map("".join), st.data())
def test_a_whole_claim_never_changes_as_the_text_grows(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text)))
    early = [claim for claim in claims(text[:cut], finished=False) if claim.whole]
    assert early == claims(text)[: len(early)]


def test_what_may_announce_a_list_is_not_whole_before_the_list_is_seen() -> None:
    assert not any(claim.whole for claim in claims("These are:\n1", finished=False))
    assert [claim.text for claim in claims("These are:\n1. First\n") if claim.whole] == ["First"]
