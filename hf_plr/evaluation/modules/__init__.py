"""Modules that `evaluate.load` reads, one a file; `hf_plr.evaluation.path` says where they are."""
