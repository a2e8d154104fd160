"""Text to the terms that BM25 counts: folded, cut into words, stemmed by language."""
