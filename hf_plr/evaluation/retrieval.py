"""Scores of retrieval for re-identification: mean average precision and cumulative matching characteristics."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from hf_plr.clustering.blocks import iterate_rows, pad_rows, pad_to_tiles
from hf_plr.clustering.checks import check_finite, check_lengths
from hf_plr.evaluation.codes import validate_codes
from hf_plr.evaluation.intervals import Scored, bootstrap_interval
from hf_plr.utils.precision import exact_products

JUNK = -1  # identity of gallery images that are left out
UNKNOWN = -1  # camera, which no two images have in common
RETRIEVAL_SCORES = {
    "mAP": "mAP",
    "rank_1": "Rank 1",
    "rank_5": "Rank 5",
    "rank_10": "Rank 10",
    "cluster_ari": "ARI of the last labels",
    "cluster_nmi": "NMI of the last labels",
}


def score_retrieval(
    query: torch.Tensor | np.ndarray,
    gallery: torch.Tensor | np.ndarray,
    query_ids: Sequence[int] | np.ndarray,
    gallery_ids: Sequence[int] | np.ndarray,
    query_cameras: Sequence[int] | np.ndarray | None = None,
    gallery_cameras: Sequence[int] | np.ndarray | None = None,
    ranks: Sequence[int] = (1, 5, 10),
    block_mib: float = 128.0,
) -> dict[str, float]:
    """Score a ranking of the gallery by cosine for every query: `assess_retrieval` without its intervals."""
    return assess_retrieval(
        query, gallery, query_ids, gallery_ids, query_cameras, gallery_cameras, ranks, block_mib
    ).values


def assess_retrieval(
    query: torch.Tensor | np.ndarray,
    gallery: torch.Tensor | np.ndarray,
    query_ids: Sequence[int] | np.ndarray,
    gallery_ids: Sequence[int] | np.ndarray,
    query_cameras: Sequence[int] | np.ndarray | None = None,
    gallery_cameras: Sequence[int] | np.ndarray | None = None,
    ranks: Sequence[int] = (1, 5, 10),
    block_mib: float = 128.0,
) -> Scored:
    """Score a ranking of the gallery by cosine for every query, as Market-1501 does (Zheng et al., ICCV 2015).

    A gallery image matches a query if it has the same identity. Images of the same camera too are left out of that
    query's ranking, and so is junk (identity -1). Every other image, distractors included, is a mismatch. Average
    precision is the mean of the precisions at the matches. Queries without any match are left out of all means. A match
    that is exactly as similar as a mismatch ranks behind it: of constant features, all matches come last.

    Args:
        query: features of shape (Q, D).
        gallery: features of shape (G, D), on the same device.
        query_ids, gallery_ids: identities, shapes (Q,) and (G,).
        query_cameras, gallery_cameras: cameras, shapes (Q,) and (G,), -1 = unknown and the same as no other; give both
            or neither. Without its camera, no query may be in the gallery.
        ranks: ranks of the matching characteristics, at least 1.
        block_mib: memory for the similarities of one block of queries; the whole takes some four times as much.

    Returns:
        "mAP" and "rank_1", "rank_5", ..., each in [0, 1], with intervals over the queries that have a match, and the
        counts "queries" and "queries_without_match".

    Raises:
        ValueError: if shapes do not fit, features are not finite, one camera argument is missing, or no query has a
            match.
    """
    query, gallery = torch.as_tensor(query).float(), torch.as_tensor(gallery).float()
    _check_features(query, gallery)
    if (query_cameras is None) != (gallery_cameras is None):
        raise ValueError("query_cameras and gallery_cameras: give both or none")
    device = gallery.device
    ids_q = torch.from_numpy(validate_codes("query_ids", query_ids, len(query))).to(device)
    ids_g = torch.from_numpy(validate_codes("gallery_ids", gallery_ids, len(gallery))).to(device)
    if query_cameras is None or gallery_cameras is None:
        cameras_q = cameras_g = None
    else:
        cameras_q = torch.from_numpy(validate_codes("query_cameras", query_cameras, len(query))).to(device)
        cameras_g = torch.from_numpy(validate_codes("gallery_cameras", gallery_cameras, len(gallery))).to(device)

    query, gallery = (torch.nn.functional.normalize(features, dim=1) for features in (query, gallery))
    tiles = pad_to_tiles(gallery)
    height = min(len(query), max(1, int(block_mib * 2**20 / 4 / len(tiles))))
    precisions, first_ranks = [], []
    for block in iterate_rows(len(query), height):
        same = ids_q[block, None] == ids_g
        is_excluded = (ids_g == JUNK).expand_as(same)
        if cameras_q is not None and cameras_g is not None:
            is_excluded = is_excluded | (same & (cameras_q[block, None] == cameras_g) & (cameras_g != UNKNOWN))
        with exact_products(device):
            products = pad_rows(query[block], height) @ tiles.T
        similarities = products[: len(same), : len(gallery)]
        precision, first_rank = _rank_matches(similarities, same & ~is_excluded, ~same & ~is_excluded)
        precisions.append(precision)
        first_ranks.append(first_rank)
    precision, first_rank = torch.cat(precisions), torch.cat(first_ranks)
    has_match = first_rank > 0
    if not has_match.any():
        raise ValueError(
            f"none of the {len(query)} queries has a match in the gallery beside images of the query's own camera: "
            "check the identities and cameras"
        )
    query_scores = {"mAP": precision[has_match]}
    query_scores |= {f"rank_{rank}": (first_rank[has_match] <= rank).double() for rank in ranks}
    values = {name: float(scores.mean()) for name, scores in query_scores.items()}
    values |= {"queries": int(has_match.sum()), "queries_without_match": int((~has_match).sum())}
    intervals = {name: bootstrap_interval(scores.cpu().numpy()) for name, scores in query_scores.items()}
    return Scored(values, {name: interval for name, interval in intervals.items() if interval is not None})


def _rank_matches(
    similarities: torch.Tensor, is_match: torch.Tensor, is_mismatch: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rank matches (B, G); returns average precision (B,) and the first match's rank (B,), 0 for a row without one."""
    mismatches = similarities.masked_fill(~is_mismatch, -torch.inf).sort(dim=1).values
    n_matches = is_match.sum(dim=1)
    most_matches = int(n_matches.max())
    if most_matches == 0:
        zeros = torch.zeros(len(is_match), device=is_match.device)
        return zeros.double(), zeros.long()
    matches = similarities.masked_fill(~is_match, -torch.inf).topk(most_matches, dim=1).values.contiguous()
    mismatches_before = mismatches.shape[1] - torch.searchsorted(mismatches, matches)  # equally near ones count too
    match_number = torch.arange(1, most_matches + 1, device=is_match.device)
    rank = match_number + mismatches_before
    is_counted = match_number <= n_matches[:, None]
    precision = torch.where(is_counted, match_number.double() / rank, 0.0).sum(dim=1) / n_matches.clamp(min=1)
    return precision, torch.where(n_matches > 0, rank[:, 0], 0)


def _check_features(query: torch.Tensor, gallery: torch.Tensor) -> None:
    for name, features in (("query", query), ("gallery", gallery)):
        if features.ndim != 2 or len(features) == 0:
            raise ValueError(
                f"{name} features have shape {tuple(features.shape)}, expected (n, D) with n of at least 1"
            )
        check_finite(features, f"{name} features")
        check_lengths(features, f"{name} features")
    if query.shape[1] != gallery.shape[1]:
        raise ValueError(f"query features have {query.shape[1]} columns, gallery features {gallery.shape[1]}")
