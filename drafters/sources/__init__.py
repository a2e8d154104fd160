"""Drafters that copy: from the request, the documents, the corpus, or the target's own rankings."""
