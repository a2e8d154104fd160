"""Runs tasks through engines: plan, run, store, score, compare, report."""
