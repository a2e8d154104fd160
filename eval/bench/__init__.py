"""Benchmarks: one file each, `folio bench NAME`."""
