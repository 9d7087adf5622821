"""Re-identification: data sets of people and vehicles, and the scores of retrieval."""
