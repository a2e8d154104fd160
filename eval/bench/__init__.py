"""Benchmarks: a room for what is measured, one file a benchmark, `folio bench NAME`."""
