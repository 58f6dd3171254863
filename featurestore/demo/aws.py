"""What an AWS client does with the store: boto3 as it is, with another endpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from featurestore.errors import StoreUnavailable

S3_URI: Final = "s3://nyc-flights"
"""Names the groups' folder below the offline store's root; nothing leaves this machine."""


class Aws:
    """boto3's two feature store clients, pointed at the service.

    Every method raises StoreUnavailable when the service does not answer.
    """

    def __init__(self, url: str) -> None:
        import boto3
        from botocore.config import Config

        session = boto3.session.Session(
            aws_access_key_id="demo",  # a store without keys takes any credentials
            aws_secret_access_key="demo",  # noqa: S106
            region_name="us-east-1",
        )
        config = Config(proxies={}, connect_timeout=10, read_timeout=60)
        self._control = session.client("sagemaker", endpoint_url=url, config=config)
        self._runtime = session.client("sagemaker-featurestore-runtime", endpoint_url=url, config=config)

    def create_group(self, name: str, features: Mapping[str, str], *, identifier: str, event_time: str) -> dict[str, Any]:
        """CreateFeatureGroup with both stores; answers its description."""
        _ask(
            self._control.create_feature_group,
            FeatureGroupName=name,
            RecordIdentifierFeatureName=identifier,
            EventTimeFeatureName=event_time,
            FeatureDefinitions=[{"FeatureName": feature, "FeatureType": kind} for feature, kind in features.items()],
            OnlineStoreConfig={"EnableOnlineStore": True},
            OfflineStoreConfig={"S3StorageConfig": {"S3Uri": S3_URI}},
        )
        description: dict[str, Any] = _ask(self._control.describe_feature_group, FeatureGroupName=name)
        return description

    def put(self, group: str, record: Mapping[str, str]) -> None:
        pairs = [{"FeatureName": feature, "ValueAsString": value} for feature, value in record.items()]
        _ask(self._runtime.put_record, FeatureGroupName=group, Record=pairs)

    def get(self, group: str, identifier: str) -> dict[str, str] | None:
        """GetRecord: feature name to text, or None when there is no live record."""
        answer = _ask(self._runtime.get_record, FeatureGroupName=group, RecordIdentifierValueAsString=identifier)
        return _texts(answer["Record"]) if "Record" in answer else None

    def delete(self, group: str, identifier: str, event_time: str) -> None:
        """DeleteRecord, soft: online it is gone, offline its history stays."""
        _ask(
            self._runtime.delete_record,
            FeatureGroupName=group,
            RecordIdentifierValueAsString=identifier,
            EventTime=event_time,
        )

    def batch_get(self, wanted: Mapping[str, list[str]]) -> dict[tuple[str, str], dict[str, str]]:
        """BatchGetRecord of identifiers by group: (group, identifier) to record, for those that have one."""
        answer = _ask(
            self._runtime.batch_get_record,
            Identifiers=[
                {"FeatureGroupName": group, "RecordIdentifiersValueAsString": identifiers}
                for group, identifiers in wanted.items()
            ],
        )
        return {
            (found["FeatureGroupName"], found["RecordIdentifierValueAsString"]): _texts(found["Record"])
            for found in answer["Records"]
        }


def _ask(operation: Callable[..., Any], **members: Any) -> Any:
    from botocore.exceptions import BotoCoreError

    try:
        return operation(**members)
    except BotoCoreError as error:
        raise StoreUnavailable("ask the service", str(error)) from error


def _texts(pairs: list[dict[str, str]]) -> dict[str, str]:
    return {pair["FeatureName"]: pair["ValueAsString"] for pair in pairs}
