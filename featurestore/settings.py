"""Settings: one immutable value, made from a mapping of names to texts (the process environment, by default).

Every setting is `FEATURESTORE_<NAME>`; docs/reference/settings.md lists them and a test holds that it does. An unknown
`FEATURESTORE_` name refuses to start, since a misspelt setting would otherwise be silently ignored.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, ValidationError

from featurestore.errors import Fault, SettingsInvalid
from featurestore.model.feature_group import CompactionMode

PREFIX: Final = "FEATURESTORE_"
REDIS_SCHEMES: Final = ("redis", "redis+sentinel", "redis+cluster")
ONLINE_SCHEMES: Final = ("sqlite", *REDIS_SCHEMES, *(scheme.replace("redis", "rediss") for scheme in REDIS_SCHEMES))


_PRIVATE: Final = ("_url", "_password", "_secret_access_key")
"""Ends of names whose values are not repeated in messages."""
_TOGETHER: Final = (("tls_cert_file", "tls_key_file"), ("admin_access_key_id", "admin_secret_access_key"))
"""Settings that only make sense both."""


def _url_with_scheme(*schemes: str) -> AfterValidator:
    def check(url: str) -> str:
        if url and url.partition(":")[0] not in schemes:
            raise ValueError(f"a URL starting with {' or '.join(f'{scheme}:' for scheme in schemes)}")
        return url

    return AfterValidator(check)


class Settings(BaseModel):
    """Everything that an operator can choose. Field descriptions are the reference documentation.

    Units are in the names: `_s` seconds, `_bytes` bytes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    home: Path = Field(
        Path(".featurestore"),
        description="Folder that holds everything of the embedded stores; created when missing.",
    )
    registry_url: Annotated[str, _url_with_scheme("sqlite", "postgresql+psycopg")] = Field(
        "",
        description="SQLAlchemy URL of the registry: `sqlite:///path` or `postgresql+psycopg://...`. "
        "Empty: `registry.db` in the home folder.",
    )
    online_url: Annotated[str, _url_with_scheme(*ONLINE_SCHEMES)] = Field(
        "",
        description="Online store and outbox: `sqlite:///path`, or Redis as `redis://...`, `redis+sentinel://...` or "
        "`redis+cluster://...`, see docs/guides/redis.md. Empty: `online.db` in the home folder.",
    )
    offline_url: Annotated[str, _url_with_scheme("file", "s3")] = Field(
        "",
        description="Root of the offline store: `file:///path` or `s3://bucket/prefix`. Empty: `offline/` in the home folder.",
    )
    iceberg_catalog_url: Annotated[str, _url_with_scheme("sqlite", "postgresql+psycopg")] = Field(
        "",
        description="SQLAlchemy URL of the Iceberg catalog: `sqlite:///path` or `postgresql+psycopg://...`. "
        "Empty: `iceberg.db` in the home folder.",
    )
    offline_cache_bytes_max: int = Field(
        10 << 30,
        ge=1 << 20,
        description="Disk space for copies of a remote offline store's files (and as much again for those of remote buckets), in "
        "`cache/` of the home folder; beyond it, those used least recently are deleted.",
    )
    buckets_url: Annotated[str, _url_with_scheme("file", "s3")] = Field(
        "",
        description="Where users' objects are, such as query results: `file:///path`, or `s3://` for the buckets of a real S3 "
        "service, which S3 clients then talk to themselves; see docs/guides/buckets.md. Empty: `buckets/` in the home folder.",
    )
    kafka_bootstrap_servers: str = Field(
        "",
        description="Brokers of a Kafka cluster as `host:port,host:port`, see docs/guides/kafka.md. Empty: no Kafka, the offline "
        "writer reads the outbox.",
    )
    kafka_ack_s: float = Field(
        10.0,
        gt=0,
        description="How long a write to a feature group with `durability=log` waits until Kafka has it; then it fails with "
        "ServiceUnavailable, although it is written online.",
    )
    kafka_topic: str = Field(
        "featurestore.changes",
        pattern=r"^[A-Za-z0-9._-]{1,249}$",
        description="Topic of this store's changes, with one partition per shard; created when missing. Each store has its own.",
    )
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="How to talk to the brokers: `PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`."
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        "SCRAM-SHA-512", description="How to log in with SASL: `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`."
    )
    kafka_sasl_user: str = Field("", description="User to log in to the brokers as.")
    kafka_sasl_password: SecretStr = Field(SecretStr(""), description="Password of that user; never shown or logged.")
    kafka_ca_file: str = Field(
        "", description="PEM file with the authorities that sign the brokers' certificates. Empty: those of the system."
    )
    account_id: str | None = Field(
        None,
        pattern=r"^[0-9]{12}$",
        description="Account number in ARNs and offline paths, fixed when the store is created: by default 000000000000.",
    )
    region: str | None = Field(
        None,
        pattern=r"^[a-z0-9-]{1,32}$",
        description="Region in ARNs and offline paths, fixed when the store is created: by default us-east-1.",
    )
    shards: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="Shards of the change log, fixed when the store is created: by default 4. "
        "Each flush writes its own files per shard, so an embedded store wants few.",
    )
    host: str = Field("127.0.0.1", description="Address the service listens on.")
    port: int = Field(8080, ge=0, le=65535, description="Port the service listens on; 0 takes a free one.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes that answer requests, see docs/guides/processes.md. Limits of queries hold for each of them.",
    )
    tls_cert_file: str = Field(
        "", description="PEM file with the certificate, and those it rests on, that the service shows; with it, it speaks HTTPS."
    )
    tls_key_file: str = Field("", description="PEM file with the private key of that certificate.")
    admin_access_key_id: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{3,128}$",
        description="Access key id of an administrator beside those of `featurestore keys`; with it, requests must be signed.",
    )
    admin_secret_access_key: SecretStr | None = Field(
        None,
        min_length=16,
        max_length=256,
        description="Secret access key of that administrator, 16 to 256 characters; never shown or logged.",
    )
    body_bytes_max: int = Field(
        256 << 20, ge=1 << 20, description="Largest request body of the bulk routes; record routes take at most 16 MiB."
    )
    flush_s: float = Field(
        2.0, gt=0, le=3600, description="How long an acknowledged change may wait before it is written to the offline store."
    )
    flush_changes_max: int = Field(
        50_000, ge=1, le=1_000_000, description="Changes of one shard that are written to the offline store in one step."
    )
    outbox_changes_max: int = Field(
        1_000_000,
        ge=1,
        description="Changes that may wait for the offline store; beyond it writes are refused with ServiceUnavailable.",
    )
    maintenance_s: float = Field(
        60.0,
        gt=0,
        description="How often the service looks after the offline store: adopts files of other tools, ends history that is "
        "past its retention, merges small files, deletes what nobody needs.",
    )
    compaction_mode: CompactionMode = Field(
        CompactionMode.SHADOW,
        description="What becomes of small files once they are merged. `shadow`: they stay where tools that read the layout by "
        "path find them, at the price of up to twice the storage. `replace`: they are deleted; for stores whose files nobody "
        "reads by path.",
    )
    grace_s: float = Field(
        7200.0,
        ge=0,
        description="How long a replaced file stays for queries that are reading it; longer than any query or training set "
        "takes.",
    )
    query_timeout_s: float = Field(60.0, gt=0, description="Deadline of one SQL statement.")
    query_rows_max: int = Field(1_000_000, ge=1, description="Largest result of one SQL statement, in rows.")
    query_memory_bytes: int = Field(
        2 << 30, ge=64 << 20, description="Memory of the query engine per statement or training set; beyond it, it spills."
    )
    query_temp_bytes: int = Field(32 << 30, ge=1 << 20, description="Disk space one query may spill to.")
    query_threads: int = Field(
        default_factory=lambda: os.cpu_count() or 1, ge=1, description="Threads of the query engine. Default: all cores."
    )
    athena_timeout_s: float = Field(
        1800.0, gt=0, description="Deadline of one query execution of the Athena API, from its start to its last row."
    )
    athena_running_max: int = Field(
        2,
        ge=1,
        le=64,
        description="Query executions of the Athena API that one process runs at a time, each with the memory and threads of "
        "a query; further ones are QUEUED.",
    )
    access_log: bool = Field(False, description="Log one line per request.")

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from `FEATURESTORE_*` names of a mapping (default: the process environment), then `overrides`.

        Overrides that are None count as not given.

        Raises:
            SettingsInvalid: an unknown name (the nearest known one is suggested), or a value out of its range.
        """
        source = os.environ if environ is None else environ
        given: dict[str, Any] = {}
        faults: list[Fault] = []
        for key, value in source.items():
            if not key.startswith(PREFIX):
                continue
            name = key.removeprefix(PREFIX).lower()
            if name not in cls.model_fields:
                near = difflib.get_close_matches(name, cls.model_fields, n=1)
                known = f"{PREFIX}{near[0].upper()}" if near else f"one of {', '.join(sorted(cls.model_fields))}"
                faults.append(Fault(key, f"a known setting; did you mean {known}?" if near else known))
                continue
            given[name] = value
        if faults:
            raise SettingsInvalid(faults)
        given.update({name: value for name, value in overrides.items() if value is not None})
        try:
            settings = cls(**given)
        except ValidationError as error:
            raise SettingsInvalid(
                [
                    Fault(
                        f"{PREFIX}{name.upper()}",
                        item["msg"].removeprefix("Input should be "),
                        None if name.endswith(_PRIVATE) else item["input"],
                    )
                    for item in error.errors(include_url=False)
                    for name in [".".join(str(part) for part in item["loc"])]
                ]
            ) from error
        for one, other in _TOGETHER:
            if bool(getattr(settings, one)) != bool(getattr(settings, other)):
                missing, has = (other, one) if getattr(settings, one) else (one, other)
                raise SettingsInvalid.one(f"{PREFIX}{missing.upper()}", f"a value, as {PREFIX}{has.upper()} has one")
        return settings

    @property
    def registry_location(self) -> str:
        return self.registry_url or f"sqlite:///{self.home.absolute() / 'registry.db'}"

    @property
    def online_location(self) -> str:
        return self.online_url or f"sqlite:///{self.home.absolute() / 'online.db'}"

    @property
    def offline_location(self) -> str:
        return self.offline_url or f"file://{self.home.absolute() / 'offline'}"

    @property
    def buckets_location(self) -> str:
        return self.buckets_url or f"file://{self.home.absolute() / 'buckets'}"

    @property
    def iceberg_catalog_location(self) -> str:
        return self.iceberg_catalog_url or f"sqlite:///{self.home.absolute() / 'iceberg.db'}"
