"""The index: immutable generations of FAISS, BM25 and token store, and searches over them."""
