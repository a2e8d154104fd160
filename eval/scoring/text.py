"""Text comparison shared by the scorers: SQuAD-style F1 in English and Chinese, and ROUGE-Lsum."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

CJK_PUNCTUATION = (
    "！？｡。＂＃＄％＆＇（）＊＋，－／：；＜＝＞＠［＼］＾＿｀｛｜｝～｟｠｢｣､、"  # in the order of the official script
    "〃》「」『』【】〔〕〖〗〘〙〚〛〜〝〞〟〰〾〿–—‘’‛“”„‟…‧﹏."
)
_ENGLISH_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ALL_PUNCTUATION = str.maketrans("", "", string.punctuation + CJK_PUNCTUATION)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def english_words(text: str) -> list[str]:
    """Lower-case words without punctuation, *then* without articles (the order decides "a." and "the-end")."""
    return _ARTICLES.sub(" ", text.lower().translate(_ENGLISH_PUNCTUATION)).split()


def chinese_characters(text: str) -> list[str]:
    """Lower-case characters without English and CJK punctuation and without white space."""
    return list("".join(text.lower().translate(_ALL_PUNCTUATION).split()))


def f1(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over the common multiset; 0 where nothing is common."""
    common = sum((Counter(prediction) & Counter(reference)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def rouge_lsum(prediction: str, references: str | Sequence[str]) -> float:
    """F-measure of ROUGE-Lsum as Hugging Face `evaluate` computes it with its defaults.

    `evaluate` calls rouge_score's ``RougeScorer`` without stemming, sentences split at newlines, and takes
    the best of several references.
    """
    if isinstance(references, str):
        references = [references]
    return max(_rouge().score(reference, prediction)["rougeLsum"].fmeasure for reference in references)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeLsum"], use_stemmer=False)
