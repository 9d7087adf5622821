"""Names that several packages read: files that a run leaves, and entries in them."""

METRICS_FILE = "metrics.json"
TRAINED_EPOCHS = "trained_epochs"  # in metrics.json
