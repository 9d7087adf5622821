"""Modules for `evaluate.load`, one per file; `hf_plr.evaluation.path` returns their paths."""
