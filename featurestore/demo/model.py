"""The model: will a flight arrive late? Trained on January to September, judged on October to December."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score, roc_curve
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from featurestore.demo.flights import NEW_YORK, WEATHER

Doubles: TypeAlias = npt.NDArray[np.float64]

SCHEDULE: Final = ("carrier", "origin", "dest", "hour", "day_of_week", "distance")
"""Columns of the spine; all of them are known long before departure."""
FEATURES: Final = (
    *(f"weather.{name}" for name in WEATHER if name not in ("origin", "known_at")),
    *(f"planes.{name}" for name in ("year", "engines", "seats", "manufacturer")),
)
"""Columns that come from the feature store."""
CATEGORIES: Final = frozenset({"carrier", "origin", "dest", "planes.manufacturer"})
TRAINING_ENDS: Final = pd.Timestamp("2013-10-01", tz=NEW_YORK)

ROUNDS: Final = 60
LEAF_ROWS_MIN: Final = 100
SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Curve:
    """How well one way of guessing tells late flights from others, on flights it has not seen.

    Attributes:
        auc: chance that a late flight is ranked above one that is not; 0.5 is guessing.
        false_positives, true_positives: the ROC curve, shares from 0 to 1.
    """

    name: str
    auc: float
    false_positives: Doubles
    true_positives: Doubles


@dataclass(frozen=True, slots=True)
class Classifier:
    """A fitted model with the columns and categories it was fitted on."""

    columns: tuple[str, ...]
    categories: Mapping[str, pd.Index[Any]]
    fitted: HistGradientBoostingClassifier

    def late(self, frame: pd.DataFrame) -> Doubles:
        """The probability of being late, per row of a frame that has `columns`."""
        with threadpool_limits(1, user_api="openmp"):
            probabilities: Doubles = self.fitted.predict_proba(_inputs(frame, self.columns, self.categories))[:, 1]
        return probabilities


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What came of the training.

    Attributes:
        rows_train, rows_test: flights that arrived, before and after TRAINING_ENDS.
        late_share: of the flights in the test.
        baselines: the curves to beat.
        curve: of `classifier`, which uses SCHEDULE and FEATURES.
    """

    rows_train: int
    rows_test: int
    late_share: float
    baselines: tuple[Curve, ...]
    curve: Curve
    classifier: Classifier


def train(flights: pd.DataFrame) -> Evaluation:
    """Train and judge.

    Deterministic to the last bit on any number of cores: seeded, and on one thread, which on a busy machine is also several
    times as fast as OpenMP's spinning threads.

    Args:
        flights: the training set; flights without `late` are left out.
    """
    arrived = flights[flights["late"].notna()]
    in_training = arrived["departure"] < TRAINING_ENDS
    seen, unseen = arrived[in_training], arrived[~in_training]
    truth = unseen["late"].to_numpy(dtype=np.int64)
    classifier = fit(seen, (*SCHEDULE, *FEATURES))
    return Evaluation(
        rows_train=len(seen),
        rows_test=len(unseen),
        late_share=float(truth.mean()),
        baselines=(
            _curve("hour of day alone", truth, _late_by_hour(seen, unseen)),
            _curve("same model, timetable only", truth, fit(seen, SCHEDULE).late(unseen)),
        ),
        curve=_curve("with weather and aircraft", truth, classifier.late(unseen)),
        classifier=classifier,
    )


def fit(flights: pd.DataFrame, columns: Sequence[str]) -> Classifier:
    """Boosted trees over some columns of flights that all arrived."""
    categories = {name: pd.Index(sorted(flights[name].dropna().unique())) for name in columns if name in CATEGORIES}
    model = HistGradientBoostingClassifier(
        max_iter=ROUNDS,
        min_samples_leaf=LEAF_ROWS_MIN,
        categorical_features="from_dtype",
        early_stopping=False,
        random_state=SEED,
    )
    with threadpool_limits(1, user_api="openmp"):
        model.fit(_inputs(flights, columns, categories), flights["late"].to_numpy(dtype=np.int64))
    return Classifier(tuple(columns), categories, model)


def _inputs(frame: pd.DataFrame, columns: Sequence[str], categories: Mapping[str, pd.Index[Any]]) -> pd.DataFrame:
    """The model's input: categories as they were in training, others are missing; all else float64 with NaN for missing."""
    inputs = {}
    for name in columns:
        if name in categories:
            known = frame[name].where(frame[name].isin(categories[name]))
            inputs[name] = pd.Series(pd.Categorical(known, categories=categories[name]), index=frame.index)
        else:
            inputs[name] = frame[name].astype("float64")
    return pd.DataFrame(inputs)


def _late_by_hour(seen: pd.DataFrame, unseen: pd.DataFrame) -> Doubles:
    """The share of late flights of the same hour of day in training."""
    by_hour = seen["late"].astype("float64").groupby(seen["hour"]).mean()
    return np.asarray(unseen["hour"].map(by_hour).fillna(by_hour.mean()), dtype=np.float64)


def _curve(name: str, truth: npt.NDArray[np.int64], scores: Doubles) -> Curve:
    false_positives, true_positives, _ = roc_curve(truth, scores)
    return Curve(name, float(roc_auc_score(truth, scores)), false_positives, true_positives)
