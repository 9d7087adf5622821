"""Names that several packages read: files that a run leaves, and entries in them."""

METRICS_FILE = "metrics.json"
PAGE_FILE = "report.html"
TRAINED_EPOCHS = "trained_epochs"  # in metrics.json
