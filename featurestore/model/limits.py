"""Limits and patterns of the service, as data.

Facts of the Amazon SageMaker service models (control plane 2017-07-24, runtime 2020-07-01) and of its developer guide;
lengths are characters unless the name says bytes.
"""

from __future__ import annotations

import re
from typing import Final

FEATURE_GROUP_NAME_CHARS_MAX: Final = 64
FEATURE_GROUP_NAME: Final = re.compile(r"[a-zA-Z0-9](?:[_-]*[a-zA-Z0-9]){0,63}")
FEATURE_GROUP_ARN_PREFIX: Final = re.compile(r"arn:aws[a-z\-]*:sagemaker:[a-z0-9\-]*:[0-9]{12}:feature-group/")
FEATURE_GROUP_NAME_OR_ARN_CHARS_MAX: Final = 256
RECORD_GROUP_CHARS_MAX: Final = 150
"""The same in the record operations, whose model is narrower."""
FEATURE_NAME_CHARS_MAX: Final = 64
FEATURE_NAME: Final = re.compile(r"[a-zA-Z0-9](?:[-_]*[a-zA-Z0-9]){0,63}")
RESERVED_FEATURE_NAMES: Final = frozenset({"is_deleted", "write_time", "api_invocation_time"})

FEATURES_PER_GROUP_MAX: Final = 2500
FEATURE_ADDITIONS_MAX: Final = 100
FEATURE_GROUPS_MAX: Final = 10_000
"""The public service's soft quota is 100; a store of one's own has room for more."""
VECTOR_DIMENSION_MAX: Final = 8192

DESCRIPTION_CHARS_MAX: Final = 128
FEATURE_DESCRIPTION_CHARS_MAX: Final = 255
FEATURE_PARAMETERS_MAX: Final = 25
FEATURE_PARAMETER_CHARS_MAX: Final = 255
_SEPARATORS: Final = " \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""`\\p{Z}` of the service model's patterns: spaces, but no tabs and line feeds."""
FEATURE_PARAMETER: Final = re.compile(rf"[\w{_SEPARATORS}.:/=+\-]*")
TAGS_MAX: Final = 50
TAG_KEY_CHARS_MAX: Final = 128
TAG_VALUE_CHARS_MAX: Final = 256
TAG: Final = re.compile(rf"[\w{_SEPARATORS}.:/=+\-@]*")
ROLE_ARN_CHARS_MIN: Final = 20
ROLE_ARN_CHARS_MAX: Final = 2048
ROLE_ARN: Final = re.compile(r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+")
KMS_KEY_CHARS_MAX: Final = 2048
KMS_KEY: Final = re.compile(r"[a-zA-Z0-9:/_-]*")
S3_URI_CHARS_MAX: Final = 1024
S3_URI: Final = re.compile(r"(https|s3)://([^/]+)/?(.*)")
S3_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
CATALOG_NAME_CHARS_MAX: Final = 255

VALUE_CHARS_MAX: Final = 358_400
RECORD_BYTES_MAX: Final = 350 * 1024
"""Names and values of one record, UTF-8."""
RECORD_IDENTIFIER_BYTES_MAX: Final = 2 * 1024
COLLECTION_ELEMENTS_MAX: Final = 358_400
BATCH_GET_GROUPS_MAX: Final = 100
BATCH_GET_IDENTIFIERS_MAX: Final = 100
BATCH_WRITE_ENTRIES_MAX: Final = 25
UPDATE_FEATURES_MAX: Final = 100
LIST_RECORDS_MAX: Final = 100
TARGET_STORES_MAX: Final = 2
TTL_VALUE_MIN: Final = 1
MESSAGE_CHARS_MAX: Final = 2048

LIST_PAGE_MAX: Final = 100
NAME_CONTAINS_CHARS_MAX: Final = 64
NEXT_TOKEN_CHARS_MAX: Final = 8192
CAPACITY_UNITS_MAX: Final = 10_000_000
