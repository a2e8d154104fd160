"""The recipe of the sentence ranker: ``data``, ``train``, ``evaluate``."""
