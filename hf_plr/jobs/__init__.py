"""The stage between two epochs as jobs over files, for engines that run commands or map over parquet."""
