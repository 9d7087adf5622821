"""Output folders of finished runs, as other commands find them."""

from __future__ import annotations

from pathlib import Path

from hf_plr import PLRTrainer
from hf_plr.clustering.novelty import KNOWN_CLUSTERS_FILE, KnownClusters
from hf_plr.report.metrics_file import write_metrics


def publish(trainer: PLRTrainer) -> tuple[str, KnownClusters]:
    """Train, and write the output folder with the backbone, the labels and the metrics; also returns its clusters."""
    trainer.train()
    trainer.save_model()
    out = Path(str(trainer.args.output_dir))
    trainer.save_labels(out)
    write_metrics(out / "metrics.json", trainer.summary(), seconds=1.0)
    return str(out), KnownClusters.load(out / KNOWN_CLUSTERS_FILE)
