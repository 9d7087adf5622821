"""How memory and time grow with samples, columns, clusters and processes: a model, checked against the real stage."""
