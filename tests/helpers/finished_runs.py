"""Output folders of finished runs, as other commands find them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch.nn.functional as F

from hf_plr import PLRTrainer
from hf_plr.clustering.novelty import KNOWN_CLUSTERS_FILE, KnownClusters, draw_references
from hf_plr.report.outputs import write_metrics


def publish(trainer: PLRTrainer) -> tuple[str, KnownClusters]:
    """Train, and write the output folder with the backbone, the labels, the metrics and the known clusters."""
    trainer.train()
    trainer.save_model()
    out = Path(str(trainer.args.output_dir))
    trainer.save_labels(out)
    write_metrics(out / "metrics.json", trainer.summary(), seconds=1.0)
    features = trainer.extract_features().cpu()
    center = features.mean(dim=0)
    rows = F.normalize(features - center, dim=1)
    labels = trainer.pseudo_labels.labels
    ids, sizes = np.unique(labels[labels >= 0], return_counts=True)
    prototypes = np.stack([rows.numpy()[labels == label].mean(axis=0) for label in ids])
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    known = KnownClusters.fit(draw_references(rows), center, rows.new_tensor(prototypes), ids, sizes)
    known.save(out / KNOWN_CLUSTERS_FILE)
    return str(out), known
