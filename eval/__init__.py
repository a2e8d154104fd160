"""Evaluation: tasks, scores, the harness that runs them, benchmarks, and the recipe of the embedded reader."""
