"""Limits and patterns of the service, as data: the one place where they are written down.

Facts of the Amazon SageMaker service models (control plane 2017-07-24, runtime 2020-07-01) and of its developer guide;
lengths are characters unless the name says bytes. `tests/unit/test_control_limits.py` compares those of the control plane
with the service model of the installed AWS SDK.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

_SEPARATORS: Final = " \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
"""`\\p{Z}` of the service model's patterns: spaces, but no tabs and line feeds."""
_DIALECT: Final = (
    (r"\p{L}\p{Z}\p{N}_", rf"\w{_SEPARATORS}"),
    (r"\uD800\uDC00-\uDBFF\uDFFF", "\U00010000-\U0010ffff"),
    (r"\d", "[0-9]"),
)
"""What the service model's patterns write otherwise than Python does: classes of Unicode, and pairs of UTF-16."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text of a request: its length in characters, and the pattern that the whole of it must match.

    Attributes:
        pattern: as the service model writes it.
        words: what the pattern allows, in words that follow "at most 64".
        example: if given, names the whole expectation instead.
    """

    chars_max: int | None = None
    chars_min: int = 0
    pattern: str | None = None
    words: str = "characters"
    example: str = ""
    _regex: re.Pattern[str] | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = self.pattern
        if text is not None:
            for theirs, ours in _DIALECT:
                text = text.replace(theirs, ours)
        object.__setattr__(self, "_regex", None if text is None else re.compile(text))

    def allows(self, text: str) -> bool:
        if len(text) < self.chars_min or (self.chars_max is not None and len(text) > self.chars_max):
            return False
        return self._regex is None or self._regex.fullmatch(text) is not None

    @property
    def expected(self) -> str:
        """What belongs here, for messages."""
        if self.example:
            return self.example
        if self.chars_max is None:
            return f"at least {self.chars_min} {self.words}"
        return (
            f"{self.chars_min} to {self.chars_max} {self.words}" if self.chars_min else f"at most {self.chars_max} {self.words}"
        )

    def fullmatch(self, text: str) -> re.Match[str] | None:
        """The pattern's match on a text of any length."""
        assert self._regex is not None, "asked of texts that have a pattern"
        return self._regex.fullmatch(text)


@dataclass(frozen=True, slots=True)
class Number:
    """An integer, or the number of a list's elements, from `least` to `most`; None is no upper bound."""

    least: int = 0
    most: int | None = None

    def allows(self, number: int) -> bool:
        return number >= self.least and (self.most is None or number <= self.most)

    @property
    def expected(self) -> str:
        """What belongs here, for messages."""
        return f"an integer of at least {self.least}" if self.most is None else f"an integer from {self.least} to {self.most}"

    @property
    def expected_count(self) -> str:
        """The same for the number of a list's elements."""
        least = f"{self.least} to" if self.least else "at most"
        return f"at least {self.least} elements" if self.most is None else f"{least} {self.most} elements"


# Feature groups and features

FEATURE_GROUP_NAME_CHARS_MAX: Final = 64
RECORD_GROUP_CHARS_MAX: Final = 150
"""Of a name or an ARN in the record operations, whose model is narrower."""
FEATURE_NAME_CHARS_MAX: Final = 64
_NAME: Final = "letters, digits, '-' or '_', with a letter or digit at both ends"
FEATURE_GROUP_NAME: Final = Text(FEATURE_GROUP_NAME_CHARS_MAX, 1, "[a-zA-Z0-9]([_-]*[a-zA-Z0-9]){0,63}", _NAME)
FEATURE_NAME: Final = Text(FEATURE_NAME_CHARS_MAX, 1, "[a-zA-Z0-9]([-_]*[a-zA-Z0-9]){0,63}", _NAME)
FEATURE_GROUP_NAME_OR_ARN_CHARS_MAX: Final = 256
FEATURE_GROUP_NAME_OR_ARN: Final = Text(
    FEATURE_GROUP_NAME_OR_ARN_CHARS_MAX,
    1,
    r"(arn:aws[a-z\-]*:sagemaker:[a-z0-9\-]*:[0-9]{12}:feature-group\/)?([a-zA-Z0-9]([_-]*[a-zA-Z0-9]){0,63})",
    example=f"the name or the ARN of a feature group, the name of 1 to {FEATURE_GROUP_NAME_CHARS_MAX} {_NAME}",
)
FEATURE_GROUP_ARN_PREFIX: Final = re.compile(r"arn:aws[a-z\-]*:sagemaker:[a-z0-9\-]*:[0-9]{12}:feature-group/")
RESERVED_FEATURE_NAMES: Final = frozenset({"is_deleted", "write_time", "api_invocation_time"})

FEATURES_PER_GROUP_MAX: Final = 2500
FEATURE_DEFINITIONS: Final = Number(1, FEATURES_PER_GROUP_MAX)
FEATURE_ADDITIONS_MAX: Final = 100
FEATURE_ADDITIONS: Final = Number(1, FEATURE_ADDITIONS_MAX)
FEATURE_GROUPS_MAX: Final = 10_000
"""The public service's soft quota is 100; a store of one's own has room for more."""
VECTOR_DIMENSION_MAX: Final = 8192
VECTOR_DIMENSION: Final = Number(1, VECTOR_DIMENSION_MAX)

DESCRIPTION_CHARS_MAX: Final = 128
DESCRIPTION: Final = Text(DESCRIPTION_CHARS_MAX)
ROLE_ARN_CHARS_MIN: Final = 20
ROLE_ARN_CHARS_MAX: Final = 2048
ROLE_ARN: Final = Text(
    ROLE_ARN_CHARS_MAX,
    ROLE_ARN_CHARS_MIN,
    r"arn:aws[a-z\-]*:iam::\d{12}:role/?[a-zA-Z_0-9+=,.@\-_/]+",
    example="an IAM role ARN such as arn:aws:iam::000000000000:role/name",
)
KMS_KEY_CHARS_MAX: Final = 2048
KMS_KEY: Final = Text(KMS_KEY_CHARS_MAX, 0, "[a-zA-Z0-9:/_-]*", "letters, digits or :/_-")
S3_URI_CHARS_MAX: Final = 1024
S3_URI: Final = Text(
    S3_URI_CHARS_MAX,
    0,
    "(https|s3)://([^/]+)/?(.*)",
    example=f"s3://bucket/prefix of at most {S3_URI_CHARS_MAX} characters",
)
S3_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]")
CATALOG_NAME_CHARS_MAX: Final = 255
CATALOG_NAME: Final = Text(
    CATALOG_NAME_CHARS_MAX,
    1,
    r"[\u0020-\uD7FF\uE000-\uFFFD\uD800\uDC00-\uDBFF\uDFFF\t]*",
    "characters without line ends and other control characters",
)
FAILURE_REASON_CHARS_MAX: Final = 1024
TTL_VALUE: Final = Number(1)
CAPACITY_UNITS_MAX: Final = 10_000_000
CAPACITY_UNITS: Final = Number(0, CAPACITY_UNITS_MAX)

# Metadata of features, and tags

FEATURE_DESCRIPTION_CHARS_MAX: Final = 255
FEATURE_DESCRIPTION: Final = Text(FEATURE_DESCRIPTION_CHARS_MAX, 0, ".*", "characters in one line")
FEATURE_PARAMETERS_MAX: Final = 25
FEATURE_PARAMETERS: Final = Number(0, FEATURE_PARAMETERS_MAX)
FEATURE_PARAMETER_CHARS_MAX: Final = 255
FEATURE_PARAMETER: Final = Text(
    FEATURE_PARAMETER_CHARS_MAX, 1, r"([\p{L}\p{Z}\p{N}_.:/=+\-]*)", "letters, digits, spaces or _.:/=+-"
)
TAGS_MAX: Final = 50
TAGS: Final = Number(0, TAGS_MAX)
TAG_KEYS: Final = Number(1, TAGS_MAX)
TAG_KEY_CHARS_MAX: Final = 128
TAG_VALUE_CHARS_MAX: Final = 256
_TAG: Final = r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)"
_TAG_WORDS: Final = "letters, digits, spaces or _.:/=+-@"
TAG_KEY: Final = Text(TAG_KEY_CHARS_MAX, 1, _TAG, _TAG_WORDS)
TAG_VALUE: Final = Text(TAG_VALUE_CHARS_MAX, 0, _TAG, _TAG_WORDS)
TAG_RESERVED_PREFIX: Final = "aws:"
"""Of keys, in any case: Amazon keeps it for its own tags."""
TAGS_PAGE: Final = Number(50)
RESOURCE_ARN: Final = Text(
    256, 0, "arn:aws[a-z-]*:sagemaker:[a-z0-9-]*:[0-9]{12}:.+", example="the ARN of a feature group, at most 256 characters"
)

# Lists and searches

LIST_PAGE_MAX: Final = 100
PAGE: Final = Number(1, LIST_PAGE_MAX)
NAME_CONTAINS_CHARS_MAX: Final = 64
NAME_CONTAINS: Final = Text(NAME_CONTAINS_CHARS_MAX, 1)
NEXT_TOKEN_CHARS_MAX: Final = 8192
NEXT_TOKEN: Final = Text(
    NEXT_TOKEN_CHARS_MAX, 0, ".*", example=f"a token of an earlier answer, at most {NEXT_TOKEN_CHARS_MAX} characters"
)
PROPERTY_NAME: Final = Text(255, 1, ".+", "characters in one line")
FILTER_VALUE: Final = Text(1024, 1, ".+", "characters in one line")
EXPRESSION_PARTS: Final = Number(1, 20)
"""Elements of each list of a search expression."""
EXPRESSION_ELEMENTS_MAX: Final = 50
"""Sub-expressions, nested filters and filters of a whole search expression, those within nested filters included."""
VISIBILITY_CONDITIONS: Final = Number(1, 5)
VISIBILITY_KEY: Final = Text(128, 1, _TAG, _TAG_WORDS)
VISIBILITY_VALUE: Final = Text(256, 0, _TAG, _TAG_WORDS)

# Records

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
