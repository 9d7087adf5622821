"""Names that several packages read: files that a run leaves, and entries in them."""

METRICS_FILE = "metrics.json"
PAGE_FILE = "report.html"
PLOT_FILE = "clusters.png"  # of the model card
TRAINED_EPOCHS = "trained_epochs"  # in metrics.json
WEIGHTS_EPOCH = "weights_epoch"  # there, too: another one where the best checkpoint's weights were loaded
