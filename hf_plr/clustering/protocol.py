"""Protocol of clusterers, and the adapter for objects with scikit-learn's `fit_predict` alone."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from accelerate import Accelerator
from sklearn.base import clone

from hf_plr.utils.distributed import gather_rows, locate_rows, max_all, run_on_main

IGNORED_PARAMETERS = ("verbose", "n_jobs", "copy")  # parameters that change no label


@runtime_checkable
class Clusterer(Protocol):
    """Clusterer of the rows of all processes together, with a state for checkpoints.

    `KMeans`, `ReciprocalDBSCAN` and `ReciprocalHDBSCAN` are such clusterers. `as_clusterer` adapts any other
    object with `fit_predict`.
    """

    def fit_predict_shard(self, features: torch.Tensor, accelerator: Accelerator) -> np.ndarray:
        """Cluster the rows of all processes; returns labels of this process's rows.

        Args:
            features: this process's rows, shape (n, D), on its device.
            accelerator: connects the processes.

        Returns:
            Integers of shape (n,), -1 = noise.
        """

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters by name, as scikit-learn's estimators have them; empty where unknown."""

    def state_dict(self) -> dict[str, Any]:
        """State for the next call, as arrays by name."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the output of `state_dict`."""


class FitPredictClusterer:
    """Adapter for an object with `fit_predict(features) -> labels`: one process clusters the features of all.

    Further methods of `Clusterer` are used where the object has them: `fit_predict_shard`, `get_params`, or
    `state_dict` and `load_state_dict`.

    Args:
        estimator: object with `fit_predict` on a numpy array (N, D), returning integers (N,), -1 = noise.

    Raises:
        TypeError: if the object has no `fit_predict`.
    """

    def __init__(self, estimator: Any):
        self.estimator = estimator
        self._shard = getattr(estimator, "fit_predict_shard", None)
        if self._shard is None and not callable(getattr(estimator, "fit_predict", None)):
            raise TypeError(
                f"the clusterer {type(estimator).__name__} has no fit_predict: give an object with "
                "fit_predict(features) that returns one integer per sample, -1 = noise"
            )

    def fit_predict(self, features: np.ndarray) -> np.ndarray:
        """Predict labels (N,) of features (N, D).

        Raises:
            ValueError: if the estimator does not return one integer per row.
        """
        return validate_labels(self.estimator.fit_predict(features), len(features))

    def fit_predict_shard(self, features: torch.Tensor, accelerator: Accelerator) -> np.ndarray:
        """Predict labels (n,) of this process's rows (n, D); the estimator runs on the main process alone."""
        if self._shard is not None:
            return np.asarray(self._shard(features, accelerator))
        rows = gather_rows(accelerator, features)
        labels: np.ndarray = run_on_main(
            accelerator, lambda: self.fit_predict(rows.cpu().numpy()), f"clustering by {type(self.estimator).__name__}"
        )
        start, _ = locate_rows(accelerator, len(features))
        return labels[start : start + len(features)]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Parameters of the estimator; empty without `get_params`."""
        get_params = getattr(self.estimator, "get_params", None)
        return {} if get_params is None else get_params(deep=deep)

    def set_params(self, **parameters: Any) -> FitPredictClusterer:
        """Set the estimator's parameters."""
        self.estimator.set_params(**parameters)
        return self

    def state_dict(self) -> dict[str, Any]:
        """State of the estimator; empty without `state_dict`."""
        state_dict = getattr(self.estimator, "state_dict", None)
        return {} if state_dict is None else state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the estimator's state, if it has one."""
        load_state_dict = getattr(self.estimator, "load_state_dict", None)
        if load_state_dict is not None:
            load_state_dict(state)

    def __sklearn_clone__(self) -> FitPredictClusterer:
        return FitPredictClusterer(clone(self.estimator))


def as_clusterer(estimator: Any) -> Clusterer:
    """Adapt an object with `fit_predict`; a `Clusterer` is returned unchanged.

    Raises:
        TypeError: if the object has no `fit_predict`, or is a class.
    """
    if isinstance(estimator, type):
        raise TypeError(f"the clusterer is the class {estimator.__name__}: give an object, {estimator.__name__}(...)")
    return estimator if isinstance(estimator, Clusterer) else FitPredictClusterer(estimator)


def unwrap(clusterer: Clusterer) -> Any:
    """The estimator that `as_clusterer` was given."""
    return clusterer.estimator if isinstance(clusterer, FitPredictClusterer) else clusterer


def describe_clusterer(clusterer: Clusterer) -> dict[str, Any]:
    """Describe a clusterer by its class and the parameters that change its labels."""
    parameters = clusterer.get_params(deep=False)
    return {
        "class": type(unwrap(clusterer)).__name__,
        **{name: value for name, value in parameters.items() if name not in IGNORED_PARAMETERS},
    }


def validate_labels(labels: Any, n_samples: int, accelerator: Accelerator | None = None) -> np.ndarray:
    """Validate a clusterer's labels (N,); returns int32, or int64 if an id does not fit on one of the processes.

    Raises:
        ValueError: if they are not one integer per sample.
    """
    labels = np.asarray(labels)
    if labels.shape != (n_samples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"the clusterer's fit_predict gave {labels.dtype} of shape {labels.shape}; "
            f"expected integers of shape ({n_samples},), -1 = noise"
        )
    largest = max(int(labels.max()), -int(labels.min())) if len(labels) else 0
    return labels.astype(np.int32 if max_all(accelerator, largest) <= np.iinfo(np.int32).max else np.int64)
