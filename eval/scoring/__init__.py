"""Scores of predictions. `score_one` is the way in; each scorer is a pinned version, never "the" score."""

from eval.scoring.registry import SCORERS, ScoredFile, score_file, score_one, tasks_of

__all__ = ["SCORERS", "ScoredFile", "score_file", "score_one", "tasks_of"]
