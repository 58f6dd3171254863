"""The model: will a flight arrive late? Trained on January to September, judged on October to December."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from featurestore.demo.flights import NEW_YORK, WEATHER

if TYPE_CHECKING:
    import pandas as pd

Doubles: TypeAlias = npt.NDArray[np.float64]

SCHEDULE: Final = ("carrier", "origin", "dest", "hour", "day_of_week", "distance")
"""Columns of the spine; all of them are known long before departure."""
FEATURES: Final = (
    *(f"weather.{name}" for name in WEATHER if name not in ("origin", "known_at")),
    *(f"planes.{name}" for name in ("year", "engines", "seats", "manufacturer")),
)
"""Columns that come from the feature store."""
CATEGORIES: Final = frozenset({"carrier", "origin", "dest", "planes.manufacturer"})
TRAINING_ENDS: Final = datetime(2013, 10, 1, tzinfo=ZoneInfo(NEW_YORK))

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
    """A fitted model with the columns and categories it was fitted on.

    Attributes:
        categories: per column of CATEGORIES the number that stands for each text.
        fitted: the HistGradientBoostingClassifier.
    """

    columns: tuple[str, ...]
    categories: Mapping[str, Mapping[str, int]]
    fitted: Any

    def late(self, frame: pd.DataFrame) -> Doubles:
        """The probability of being late, per row of a frame that has `columns`."""
        with _one_thread():
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
    from sklearn.ensemble import HistGradientBoostingClassifier

    categories = {
        name: {text: number for number, text in enumerate(sorted(flights[name].dropna().unique()))}
        for name in columns
        if name in CATEGORIES
    }
    model = HistGradientBoostingClassifier(
        max_iter=ROUNDS,
        min_samples_leaf=LEAF_ROWS_MIN,
        categorical_features=[name in categories for name in columns],
        early_stopping=False,
        random_state=SEED,
    )
    with _one_thread():
        model.fit(_inputs(flights, columns, categories), flights["late"].to_numpy(dtype=np.int64))
    return Classifier(tuple(columns), categories, model)


@contextmanager
def _one_thread() -> Iterator[None]:
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # scikit-learn brings it

    with threadpool_limits(1, user_api="openmp"):
        yield


def _inputs(frame: pd.DataFrame, columns: Sequence[str], categories: Mapping[str, Mapping[str, int]]) -> Doubles:
    """The model's input, one column each: categories by number, NaN for what is missing or was not in training."""
    inputs = [frame[name].map(categories[name]) if name in categories else frame[name] for name in columns]
    return np.column_stack([values.astype("float64") for values in inputs])


def _late_by_hour(seen: pd.DataFrame, unseen: pd.DataFrame) -> Doubles:
    """The share of late flights of the same hour of day in training."""
    by_hour = seen["late"].astype("float64").groupby(seen["hour"]).mean()
    return np.asarray(unseen["hour"].map(by_hour).fillna(by_hour.mean()), dtype=np.float64)


def _curve(name: str, truth: npt.NDArray[np.int64], scores: Doubles) -> Curve:
    from sklearn.metrics import roc_auc_score, roc_curve

    false_positives, true_positives, _ = roc_curve(truth, scores)
    return Curve(name, float(roc_auc_score(truth, scores)), false_positives, true_positives)
