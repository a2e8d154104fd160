"""Weights by kind: linear layers, precisions, and peers on the same file."""
