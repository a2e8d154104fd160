"""Receipts: what an answer was made of, signed, so that it can be made again and compared."""
