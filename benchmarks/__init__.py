"""Benchmarks: each prints a small table and, with --json, one line of JSON."""
