"""What the datasets of both SDKs contain with each of their options, over the same prices.

A dataset as the SDKs define it: of records that arrived twice the later one, and of a deleted identifier only what is newer than
the delete. A point-in-time join gives every earlier record of the joined group, not only the newest.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import pandas as pd
from steps import step


def frame(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame(columns)


PRICES = frame(
    id=["a", "a", "a", "b"],
    et=[1000.0, 2000.0, 3000.0, 1500.0],
    price=[10.0, 20.0, 30.0, 15.5],
    **{"shelf-label": ["x", None, "z", "with, comma"]},  # the SDKs do not quote it in their queries
)
PRICE_AGAIN = frame(id=["a"], et=[2000.0], price=[21.0], **{"shelf-label": ["newer"]})
DELETED = {"b": "2500.0"}
PRICE_AFTER_DELETE = {"id": "b", "et": "3500.0", "price": "35.0"}
SHOPS = frame(shop=["1", "2"], opened=[1000.0, 1500.0], sells=["a", "c"], limit_of=[20.0, 30.0])


def check_datasets(dataset: Callable[..., Any], prices: Any, shops: Any, join: Any, comparator: Any) -> None:
    """Build datasets with every option that AWS itself would accept.

    Args:
        dataset: gives the SDK's builder for a base, which takes the two names that a dataframe needs, and a KMS key.
        prices: a group to which PRICES, PRICE_AGAIN, the delete of DELETED and PRICE_AFTER_DELETE were written in this order.
        shops: a group with SHOPS.
        join: the SDK's JoinTypeEnum.
        comparator: the SDK's JoinComparatorEnum.
    """

    def moments(builder: Any) -> list[tuple[str, float, float]]:
        data, sql = builder.to_dataframe()
        assert sql.lstrip().startswith("WITH"), sql
        return sorted((row["id"], float(row["et"]), float(row["price"])) for _, row in data.iterrows())

    def base(**options: Any) -> Any:
        return dataset(prices, **options)

    a, b = [("a", 1000.0, 10.0), ("a", 2000.0, 21.0), ("a", 3000.0, 30.0)], [("b", 3500.0, 35.0)]
    repeated = ("a", 2000.0, 20.0)
    before_delete = ("b", 1500.0, 15.5)
    with step("datasets: repeats once, nothing from before a delete"):
        assert moments(base()) == a + b
    with step("datasets: include_duplicated_records"):
        assert moments(base().include_duplicated_records()) == sorted([*a, repeated, *b])
    with step("datasets: include_deleted_records"):
        assert moments(base().include_deleted_records()) == sorted([*a, before_delete, *b])
    with step("datasets: both"):
        both = base().include_duplicated_records().include_deleted_records()
        assert moments(both) == sorted([*a, repeated, before_delete, *b])
    with step("datasets: the most recent ones, the first ones"):
        assert moments(base().with_number_of_recent_records_by_record_identifier(1)) == [a[2], *b]
        assert len(moments(base().with_number_of_records_from_query_results(2))) == 2
    with step("datasets: as_of, which the SDKs write as a time without a zone"):
        now = datetime.datetime.now()
        assert moments(base().as_of(now + datetime.timedelta(days=2))) == a + b
        assert moments(base().as_of(now - datetime.timedelta(days=2))) == []
    with step("datasets: with_event_time_range, from and until"):
        second = datetime.datetime.fromtimestamp
        assert moments(base().with_event_time_range(starting_timestamp=second(2000, datetime.UTC))) == [*a[1:], *b]
        assert moments(base().with_event_time_range(ending_timestamp=second(2000, datetime.UTC))) == a[:2]
        both_ends = second(1500, datetime.UTC), second(3000, datetime.UTC)
        assert moments(base().with_event_time_range(*both_ends)) == a[1:]
    with step("datasets: a KMS key, with which the SDKs ask for the result in a malformed way"):
        assert moments(base(kms_key_id="alias/results")) == a + b
    with step("datasets: to_csv_file says where the result lies"):
        where, _ = base().to_csv_file()
        assert where.startswith("s3://"), where
        assert where.endswith(".csv"), where

    with step("datasets: joins of every kind"):
        for kind, expected in (
            (join.INNER_JOIN, {("a", 1)}),
            (join.LEFT_JOIN, {("a", 1), ("b", None)}),
            (join.RIGHT_JOIN, {("a", 1), (None, 2)}),
            (join.FULL_JOIN, {("a", 1), ("b", None), (None, 2)}),
        ):
            builder = base().with_feature_group(
                shops,
                target_feature_name_in_base="id",
                included_feature_names=["shop", "sells"],  # the SDKs join on included features only
                feature_name_in_target="sells",
                join_type=kind,
            )
            joined, _ = builder.to_dataframe()
            pairs = {tuple(None if pd.isna(cell) else cell for cell in row) for row in joined[["id", "shop.1"]].to_numpy()}
            assert pairs == expected, (kind, pairs)

    with step("datasets: joined by another comparison"):
        builder = base().with_feature_group(
            shops,
            target_feature_name_in_base="price",
            included_feature_names=["shop", "limit_of"],
            feature_name_in_target="limit_of",
            join_comparator=comparator.GREATER_THAN,
        )
        joined, _ = builder.to_dataframe()
        pairs = sorted(zip(joined["price"], joined["limit_of.1"], strict=True))
        assert pairs == [(21, 20), (30, 20), (35, 20), (35, 30)], joined

    with step("datasets: a dataframe with columns of every type as the base, point in time, two groups joined"):
        asked = frame(
            id=["a", "b", "nobody"],
            moment=[2500.0, 4000.0, 4000.0],
            whole=[1, 2, 3],
            text=["with, comma", 'with "quotes"', "plain"],
            flag=[True, False, True],
        )
        builder = dataset(asked, record_identifier_feature_name="id", event_time_identifier_feature_name="moment")
        builder = builder.with_feature_group(prices, included_feature_names=["price", "shelf-label"], join_type=join.LEFT_JOIN)
        builder = builder.with_feature_group(shops, feature_name_in_target="sells", join_type=join.LEFT_JOIN)
        data, _ = builder.point_in_time_accurate_join().to_dataframe()
        got = {(row["id"], row["whole"], row["flag"], row["price.1"]) for _, row in data.fillna({"price.1": -1}).iterrows()}
        assert got == {("a", 1, True, 10.0), ("a", 1, True, 21.0), ("b", 2, False, 35.0), ("nobody", 3, True, -1)}, got
        assert set(data["text"]) == {"with, comma", 'with "quotes"', "plain"}, data
        assert set(data["shop.2"].fillna(-1)) == {1, -1}, data
