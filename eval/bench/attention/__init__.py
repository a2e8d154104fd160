"""Attention: its kernels and policies, time to a first token, answers and perplexity under them."""
