"""mAP and CMC of re-identification as a module of the evaluate library."""

from hf_plr.evaluation import retrieval_metric


class Retrieval(retrieval_metric.RetrievalMetric):
    """See `hf_plr.evaluation.retrieval.score_retrieval`."""
