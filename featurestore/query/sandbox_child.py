"""The child side of the sandbox: one process that answers one SELECT statement and is then killed.

`Sandbox` starts it ahead of its statement, with an empty environment, and speaks to it in frames over its standard
streams: a byte for the kind, eight for the length of what follows, big endian.

    child                                parent
    HELLO      fences in force    ->                              as soon as it is ready
                                  <-     STATEMENT   text, limits
    TABLES     the names it reads ->                              or FAILURE
                                  <-     RELATIONS   views, files
    ARROW      IPC stream, in pieces ->                           each one or more whole messages
    DONE                          ->                              or FAILURE

End of file on its standard input ends the child, at whatever point.

What a statement may say is decided here, on the engine's own parse of it, before any file of the store can be opened
(`Gate`):

1. Exactly one statement, of type SELECT, or EXPLAIN of one without ANALYZE. That alone is not enough:
   `WITH x AS (COPY t TO 'file') SELECT 1` is a SELECT to DuckDB 2.0.
2. Every node of its tree is of a kind listed below, every function one of FUNCTIONS or TABLE_FUNCTIONS. The lists name
   what computes from its arguments alone; absent are whatever reads files, settings, variables, catalogs, secrets or the
   environment, sleeps, logs, changes state, or runs text as SQL. What a new engine version adds stays refused.
3. Every table is a view made for this statement: the names go to the parent, which answers with exactly these
   views or ends the child. A name of the engine's own catalog can't be reached, not even through a common table
   expression of that name. `SHOW` is refused since it lists names and settings.

Below that lie the engine's own locks (`open_engine`, `lock_engine`) and below these the fences of the operating system
(`put_up_fences`, `limit_process`): a hole in one layer meets the next. Reading can only be fenced once the files are known,
so the parser, and it alone, works on the text in a process that could still read, though neither write nor talk to anyone.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import duckdb
import pyarrow as pa

from featurestore.query import os_limits

HEADER: Final = struct.Struct("!cQ")
HELLO: Final = b"H"
STATEMENT: Final = b"S"
TABLES: Final = b"T"
RELATIONS: Final = b"R"
ARROW: Final = b"A"
DONE: Final = b"D"
FAILURE: Final = b"F"

REFUSED: Final = "refused"
FAILED: Final = "failed"
LATE: Final = "late"
UNREADABLE: Final = "unreadable"
"""Kinds of FAILURE; the last one is not the statement's fault but that of a view or its files."""

DEFAULT_SCHEMA: Final = "history"
"""Where an unqualified table name is looked up."""

BATCH_ROWS: Final = 8192
"""Rows of one Arrow batch: 4 engine vectors, 160 MiB for the widest group there may be (2500 doubles)."""

BATCH_BYTES: Final = 16 << 20
"""Batches larger than this are sent in parts, for a parent that handles them one by one."""

ENGINE_TYPES: Final = b"engine_types"
"""Key of the result's schema metadata: JSON list of the engine's names of the columns' types, of which Arrow has fewer."""

MESSAGE_CHARS_MAX: Final = 2000
"""Longest message of the engine that is passed on."""

MEMORY_HEADROOM_BYTES: Final = 512 << 20
MEMORY_HEADROOM_SHARE: Final = 0.75
"""Address space granted on top of the engine's memory_limit, plus a share of it: thread stacks, what the allocator keeps,
what the engine does not count. Measured on 1.4 GB of Parquet in seven statements: sorting, list() and string_agg() passed
memory_limit by up to 336 MiB (limit 256 MiB), 1045 MiB (1 GiB) and 1499 MiB (2 GiB). One that held 400 MiB of lists passed
256 MiB by 1471 MiB: such are to fail."""

FILES_OPEN_MAX: Final = 256
"""Descriptors open at once. The engine opens data files as it reads them and closes them again: 5000 passed under this."""

CPU_MARGIN_S: Final = 10
"""CPU seconds beyond all threads working until the deadline. The limit is for a child whose parent hangs."""

RECURSION_MAX: Final = 20_000
"""The engine parses 1000 levels of expression; each is up to 4 levels of its JSON."""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ALLOWED: Final = "allowed is exactly one SELECT, or EXPLAIN of one, over feature groups"

EXPRESSIONS: Final = _names(
    """
    BETWEEN CASE CAST COLLATE COLUMN_REF COMPARISON CONJUNCTION CONSTANT FUNCTION LAMBDA OPERATOR POSITIONAL_REFERENCE
    STAR SUBQUERY TYPE WINDOW
    """
)
"""Classes of expression. Absent: PARAMETER and DEFAULT, which have no meaning here."""

NODES: Final = _names(
    """
    SELECT_NODE SET_OPERATION_NODE RECURSIVE_CTE_NODE
    BASE_TABLE EMPTY EXPRESSION_LIST JOIN PIVOT SHOW_REF SUBQUERY TABLE_FUNCTION
    DISTINCT_MODIFIER LIMIT_MODIFIER ORDER_MODIFIER ORDER_DEFAULT ASCENDING DESCENDING
    """
)
"""Query nodes, table references and modifiers. Absent: INSERT_QUERY_NODE, COPY_QUERY_NODE and the like."""

SHOWS: Final = frozenset({"DESCRIBE", "SUMMARY"})

TABLE_FUNCTIONS: Final = frozenset({"generate_series", "json_each", "json_tree", "range", "repeat_row", "unnest"})

FUNCTIONS: Final = _names(
    """
    != !__postfix !~~ !~~* % & && * ** + - ->> / // < <-> << <= <=> <@ = > >= >> @ @> ^ ^@ | || ~ ~~ ~~* ~~~
    abs acos acosh add age ago any_value apply approx_count_distinct approx_quantile approx_top_k arbitrary
    arg_max arg_max_null arg_max_nulls_last arg_min arg_min_null arg_min_nulls_last argmax argmin array_agg
    array_aggr array_aggregate array_append array_apply array_cat array_concat array_contains
    array_cosine_distance array_cosine_similarity array_cross_product array_distance array_distinct
    array_dot_product array_extract array_filter array_grade_up array_has array_has_all array_has_any
    array_indexof array_inner_product array_intersect array_length array_negative_dot_product
    array_negative_inner_product array_pop_back array_pop_front array_position array_prepend array_push_back
    array_push_front array_reduce array_resize array_reverse array_reverse_sort array_select array_slice
    array_sort array_to_json array_to_string array_transform array_unique array_value array_where array_zip ascii
    asin asinh atan atan2 atanh avg bar base64 bin binom bit_and bit_count bit_length bit_or bit_position bit_xor
    bitstring bitstring_agg bool_and bool_or cardinality cbrt ceil ceiling century char_length character_length
    chr concat concat_ws contains corr cos cosh cot count count_if count_star countif covar_pop covar_samp
    cume_dist current_date current_localtime current_localtimestamp damerau_levenshtein date_add date_diff
    date_part date_sub date_trunc datediff datepart datesub datetrunc day dayname dayofmonth dayofweek dayofyear
    days_in_month decade decimal_division decode degrees dense_rank divide editdist3 element_at encode ends_with
    entropy enum_code enum_first enum_last enum_range enum_range_boundary epoch epoch_ms epoch_ns epoch_us
    equi_width_bins era even exp factorial favg fdiv fill filter first first_value flatten floor fmod format
    format_bytes formatreadabledecimalsize formatreadablesize from_base64 from_binary from_hex from_json
    from_json_strict fsum gamma gcd gen_random_uuid generate_series generate_subscripts geomean geometric_mean
    get_bit get_current_time get_current_timestamp grade_up greatest greatest_common_divisor group_concat hamming
    hash hex histogram histogram_exact hour if ilike_escape instr isfinite isinf isnan isodow isoyear jaccard
    jaro_similarity jaro_winkler_similarity json json_array json_array_length json_contains json_deep_merge
    json_exists json_extract json_extract_path json_extract_path_text json_extract_string json_group_array
    json_group_object json_group_structure json_insert json_keys json_merge_patch json_merge_patch_diff
    json_normalize json_object json_pretty json_quote json_remove json_replace json_set json_strip_nulls
    json_structure json_transform json_transform_strict json_type json_valid json_value julian kahan_sum kurtosis
    kurtosis_pop lag last last_day last_value lcase lcm lead least least_common_multiple left left_grapheme len
    length length_grapheme levenshtein lgamma like_escape list list_aggr list_aggregate list_any_value list_append
    list_apply list_approx_count_distinct list_avg list_bit_and list_bit_or list_bit_xor list_bool_and
    list_bool_or list_cat list_concat list_contains list_cosine_distance list_cosine_similarity list_count
    list_distance list_distinct list_dot_product list_element list_entropy list_extract list_filter list_first
    list_grade_up list_has list_has_all list_has_any list_histogram list_indexof list_inner_product list_intersect
    list_kurtosis list_kurtosis_pop list_last list_mad list_max list_median list_min list_mode
    list_negative_dot_product list_negative_inner_product list_pack list_position list_prepend list_product
    list_reduce list_resize list_reverse list_reverse_sort list_select list_sem list_skewness list_slice list_sort
    list_stddev_pop list_stddev_samp list_string_agg list_sum list_transform list_unique list_value list_var_pop
    list_var_samp list_where list_zip listagg ln log log10 log2 lower lpad ltrim lttb mad make_date make_time
    make_timestamp make_timestamp_ms make_timestamp_ns make_timestamptz map map_concat map_contains
    map_contains_entry map_contains_value map_entries map_extract map_extract_value map_from_entries map_keys
    map_values max max_by md5 md5_number md5_number_lower md5_number_upper mean median microsecond millennium
    millisecond min min_by minute mismatches mod mode month monthname multiply nanosecond nextafter nfc_normalize
    normalized_interval not_ilike_escape not_like_escape now nth_value ntile nullif octet_length ord overlay
    parse_dirname parse_dirpath parse_filename parse_formatted_bytes parse_path path_join percent_rank
    pg_size_pretty pg_typeof pi position pow power prefix printf product quantile quantile_cont quantile_disc
    quarter radians random range rank rank_dense reduce regexp_escape regexp_extract regexp_extract_all
    regexp_full_match regexp_matches regexp_replace regexp_split_to_array regexp_split_to_table regr_avgx
    regr_avgy regr_count regr_intercept regr_r2 regr_slope regr_sxx regr_sxy regr_syy repeat replace
    reservoir_quantile reverse right right_grapheme round round_even roundbankers row row_number row_to_json rpad
    rtrim second sem set_bit sha1 sha256 sign signbit sin sinh skewness split split_part sqrt starts_with stddev
    stddev_pop stddev_samp str_split str_split_regex strftime string_agg string_split string_split_regex
    string_to_array strip_accents strlen strpos strptime struct_concat struct_contains struct_extract
    struct_extract_at struct_has struct_indexof struct_insert struct_keys struct_pack struct_position
    struct_update struct_values substr substring substring_grapheme subtract suffix sum sumkahan switch tan tanh
    time_bucket timezone timezone_hour timezone_minute to_base to_base64 to_binary to_centuries to_days to_decades
    to_hex to_hours to_json to_microseconds to_millennia to_milliseconds to_minutes to_months to_quarters
    to_seconds to_timestamp to_weeks to_years today transaction_timestamp translate trim trunc try_strptime typeof
    ucase unbin unhex unicode union_extract union_tag union_value unnest upper url_decode url_encode uuid
    uuid_extract_timestamp uuid_extract_version uuidv4 uuidv7 var_pop var_samp variance variant_array_length
    variant_contains variant_exists variant_extract variant_extract_string variant_keys variant_type
    variant_typeof version wavg week weekday weekofyear weighted_avg xor year yearweek
    """
)
"""Scalar, aggregate and window functions and macros of DuckDB 2.0 whose answer depends on their arguments, the clock or
chance alone. Macros were listed after reading their bodies: `format_type`, `get_block_size` and `pg_get_viewdef` read the
catalog. Left out besides: aggregate states and other internals, geometry, whatever names a type at run time."""

EXPLAIN: Final = re.compile(r"(?:[\s;]|--[^\n]*|/\*.*?\*/)*explain\b", re.IGNORECASE | re.DOTALL)
"""The word and what may stand in front of it."""


class Refused(Exception):
    """The statement is not one that may run; the message says what was found and what is allowed."""


class Statement(NamedTuple):
    """A statement that passed.

    Attributes:
        sql: what to run.
        tables: the relations it reads, each once, as (schema or None, name) in the user's spelling.
    """

    sql: str
    tables: list[tuple[str | None, str]]


class Gate:
    """Decides whether a statement may run. It asks the parser of an empty, locked database; nothing is run or opened."""

    def __init__(self, directory: str) -> None:
        self._parser = open_engine(directory)
        self._parser.execute("SET enable_external_access = false")
        # Relations that every database brings along: duckdb_views, sqlite_master, pg_class, information_schema ...
        names = "SELECT lower(view_name) FROM duckdb_views() UNION SELECT lower(table_name) FROM duckdb_tables()"
        self._engine_relations = {row[0] for row in self._parser.execute(names).fetchall()}
        self._parser.execute("SET lock_configuration = true")

    def read(self, text: str) -> Statement:
        """
        Raises:
            Refused: it is something else than one SELECT over tables, or uses what is not listed.
            duckdb.Error: it is not SQL.
        """
        kinds = self._kinds(text)
        if kinds == ["SELECT"]:
            return Statement(text, self._tables(text))
        if kinds == ["EXPLAIN"]:
            return self._read_explain(text)
        if kinds == ["MULTI"]:
            raise Refused("found a PIVOT without IN (...), which is several statements; list its values with IN")
        raise Refused(f"found {', '.join(kinds) or 'nothing'}; {ALLOWED}")

    def _kinds(self, text: str) -> list[str]:
        try:
            return [statement.type.name for statement in self._parser.extract_statements(text)]
        except ValueError:
            # The engine knows statements for which its Python client has no name (UPDATE EXTENSIONS).
            return ["an administrative statement"]

    def _read_explain(self, text: str) -> Statement:
        """What follows the word is checked as a statement of its own, and runs behind a plain EXPLAIN of ours."""
        word = EXPLAIN.match(text)
        explained = text[word.end() :] if word else ""
        try:
            kinds = self._kinds(explained)
        except duckdb.Error:
            kinds = []
        if kinds != ["SELECT"]:
            raise Refused("EXPLAIN takes one SELECT here, without ANALYZE or options")
        return Statement(f"EXPLAIN {explained}", self._tables(explained))

    def _tables(self, text: str) -> list[tuple[str | None, str]]:
        serialized = self._parser.execute("SELECT json_serialize_sql(?::VARCHAR, skip_default := true)", [text])
        try:
            tree = json.loads(serialized.fetchall()[0][0])
        except RecursionError:
            raise Refused("the statement is nested too deeply") from None
        if tree["error"]:
            raise Refused(f"the statement can't be checked: {tree['error_message']}")
        if len(tree["statements"]) != 1:
            raise Refused(f"found {len(tree['statements'])} statements; {ALLOWED}")
        tables: dict[tuple[str | None, str], None] = {}
        for path in self._walk(tree["statements"][0]):
            if len(path) > 2:
                raise Refused(f"{'.'.join(path)}: a table is named by its schema and feature group alone")
            tables[path[0] if len(path) == 2 else None, path[-1]] = None
        return list(tables)

    def _walk(self, statement: object) -> Iterator[list[str]]:
        """Check every node; yield the path of each table that is no common table expression.

        A name counts as a common table expression where the engine sees it so: in what follows it, and within itself
        in the recursive half only.
        """
        pending: list[tuple[Any, frozenset[str]]] = [(statement, frozenset())]
        while pending:
            node, expressions = pending.pop()
            if isinstance(node, list):
                pending.extend((item, expressions) for item in node)
            if not isinstance(node, dict):
                continue
            kind = check_node(node)
            if kind == "BASE_TABLE":
                path = node["qualified_name"]["path"]
                if len(path) > 1 or path[0].lower() not in expressions:
                    yield path
            members = dict(node)
            for entry in members.pop("cte_map", {}).get("map", ()):
                name = entry["key"].lower()
                if name in self._engine_relations:
                    raise Refused(f"{entry['key']!r} is a name of the engine's own; call the WITH query something else")
                pending.append((entry["value"], expressions))
                expressions |= {name}
            if kind == "RECURSIVE_CTE_NODE":
                pending.append((members.pop("right"), expressions | {node["cte_name"].lower()}))
            if kind == "TABLE_FUNCTION":
                # Checked above as a table function; as a node of its own it would have to be a scalar one.
                members |= members.pop("function")
            pending.extend((member, expressions) for member in members.values())


def check_node(node: Mapping[str, Any]) -> str:
    """The kind of a node of a parsed statement, empty for one that only groups others.

    Raises:
        Refused: the kind, or the function it calls, is not listed.
    """
    expression = node.get("class")
    if expression is not None:
        if expression not in EXPRESSIONS:
            raise Refused(f"found {str(expression).lower()}; {ALLOWED}")
        if expression in {"FUNCTION", "WINDOW"}:
            _check_function("function", node, FUNCTIONS)
        return str(expression)
    kind = node.get("type")
    if not isinstance(kind, str) or kind.endswith("_TYPE_INFO"):
        return ""
    if kind not in NODES:
        raise Refused(f"found {kind.removesuffix('_QUERY_NODE')}; {ALLOWED}")
    if kind == "TABLE_FUNCTION":
        _check_function("table function", node["function"], TABLE_FUNCTIONS)
    if kind == "SHOW_REF" and (node.get("show_type") not in SHOWS or "query" not in node):
        raise Refused("found SHOW; DESCRIBE or SUMMARIZE a feature group instead")
    return kind


def _check_function(what: str, node: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """A qualifier of the name (`system.main.abs`, `'x'.upper()`) is no matter: users can't define functions."""
    name = str(node.get("function_name", "")).lower()
    if name not in allowed or node["qualified_name"]["path"][-1].lower() != name or node.get("export_state"):
        raise Refused(f"{what} {name!r} is not allowed")


def open_engine(directory: str) -> duckdb.DuckDBPyConnection:
    """An empty database in memory that loads no extension and knows no secret.

    It starts no thread of its own yet: Landlock would not bind a thread that runs already.
    """
    return duckdb.connect(
        ":memory:",
        config={
            "threads": 1,
            "async_threads": 0,
            "temp_directory": directory,
            "secret_directory": directory,
            "allow_persistent_secrets": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "allow_unsigned_extensions": False,
            "allow_extension_repositories": "forbidden",
            "python_enable_replacements": False,
        },
    )


class Limits(NamedTuple):
    """What one statement may take; see `SandboxLimits`."""

    timeout_s: float
    memory_bytes: int
    temp_bytes: int
    threads: int


def lock_engine(
    engine: duckdb.DuckDBPyConnection,
    limits: Limits,
    files: Sequence[str],
    views: Sequence[tuple[str, str, str]],
    settings: Sequence[tuple[str, bool]] = (),
) -> None:
    """Make the views (schema, name, sql) and close the engine to everything but `files`, for good.

    The order matters: `allowed_paths` can't change once external access is off, and says nothing while it is on.
    """
    for name, value in (
        ("memory_limit", f"{limits.memory_bytes}B"),
        ("threads", limits.threads),
        ("max_temp_directory_size", f"{limits.temp_bytes}B"),
        ("max_execution_time", max(1, int(limits.timeout_s * 1000))),
        ("catalog_error_max_schemas", 0),
        ("enable_progress_bar", False),
        ("TimeZone", "UTC"),
        ("allowed_paths", list(files)),
        ("enable_external_access", False),
        *settings,
    ):
        engine.execute(f"SET {name} = {_literal(value)}")
    for schema in {DEFAULT_SCHEMA, *(schema for schema, _, _ in views)}:
        engine.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(schema)}")
    for schema, name, sql in views:
        engine.execute(f"CREATE VIEW {_quoted(schema)}.{_quoted(name)} AS {sql}")
    engine.execute(f"SET search_path = {_literal(DEFAULT_SCHEMA)}")
    engine.execute("SET lock_configuration = true")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: object) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    return str(value)


def put_up_fences(directory: str) -> list[str]:
    """Everything that can be put up before the statement is known; the names of what holds.

    The order matters: each step takes a right that an earlier one needs, and changed credentials undo `die_with_parent`.
    """
    alone = os_limits.threads_running() == 1
    fences = [
        os_limits.forbid_new_privileges(),
        os_limits.leave_network(),
        os_limits.drop_capabilities(),
        os_limits.forbid_writes(directory),
        os_limits.forbid_system_calls(),
    ]
    # With a thread running already these would hold this thread alone, and a fence with a gap is not named.
    named = [fence for fence in fences if fence] if alone else []
    return [*filter(None, named), *filter(None, [os_limits.die_with_parent()]), os_limits.resource_limits()]


def limit_process(limits: Limits) -> None:
    """The address space is what is mapped now, the engine's memory_limit and the headroom above it."""
    headroom_bytes = MEMORY_HEADROOM_BYTES + math.ceil(limits.memory_bytes * MEMORY_HEADROOM_SHARE)
    os_limits.limit_resources(
        memory_bytes=limits.memory_bytes + headroom_bytes,
        cpu_s=math.ceil(limits.timeout_s * limits.threads) + CPU_MARGIN_S,
        file_bytes=limits.temp_bytes,
        files_open=FILES_OPEN_MAX,
    )


class Channel:
    """Frames to and from the parent."""

    def __init__(self, source: int, sink: int) -> None:
        self._source = source
        self._sink = sink

    def send(self, kind: bytes, payload: bytes | memoryview = b"") -> None:
        for piece in (HEADER.pack(kind, len(payload)), payload):
            view = memoryview(piece)
            while view:
                view = view[os.write(self._sink, view) :]

    def receive(self, kind: bytes) -> Any:
        """The JSON of the next frame, which has to be of that kind. Ends the process when the parent is gone."""
        found, length = HEADER.unpack(self._read(HEADER.size))
        if found != kind:
            raise RuntimeError(f"expected a frame {kind!r}, got {found!r}")
        return json.loads(self._read(length))

    def _read(self, length: int) -> bytes:
        pieces = bytearray()
        while len(pieces) < length:
            piece = os.read(self._source, min(1 << 20, length - len(pieces)))
            if not piece:
                os._exit(0)
            pieces += piece
        return bytes(pieces)

    def exit_with_parent(self) -> None:
        """End the process as soon as the parent closes its end, which from here on it only does by ending."""
        threading.Thread(target=lambda: (os.read(self._source, 1), os._exit(0)), daemon=True).start()


def stream(reader: pa.RecordBatchReader, types: bytes, send: Callable[[bytes, memoryview], None]) -> None:
    """Send a result as one Arrow IPC stream, cut at batches."""
    sink = io.BytesIO()

    def flush() -> None:
        with sink.getbuffer() as written:
            send(ARROW, written)
        sink.seek(0)
        sink.truncate()

    with pa.ipc.new_stream(sink, reader.schema.with_metadata({ENGINE_TYPES: types})) as writer:
        for batch in reader:
            rows = max(1, batch.num_rows * BATCH_BYTES // max(BATCH_BYTES, batch.nbytes))
            for start in range(0, max(1, batch.num_rows), rows):
                writer.write_batch(batch.slice(start, rows))
                flush()
    flush()


def answer(channel: Channel, gate: Gate, engine: duckdb.DuckDBPyConnection, directory: str) -> None:
    """Take one statement from the parent and send what comes of it."""
    asked = channel.receive(STATEMENT)
    limits = Limits(**asked["limits"])
    limit_process(limits)
    statement = gate.read(asked["text"])
    channel.send(TABLES, json.dumps(statement.tables).encode())
    relations = channel.receive(RELATIONS)
    files = relations["files"]
    try:
        os_limits.forbid_reads(files, directory)
        channel.exit_with_parent()
        lock_engine(engine, limits, files, relations["views"], relations["settings"])
    except (duckdb.Error, OSError) as error:
        fail(channel, UNREADABLE, error)
        return
    result = engine.sql(statement.sql)
    types = json.dumps([str(kind) for kind in result.types]).encode()
    stream(result.to_arrow_reader(BATCH_ROWS), types, channel.send)
    channel.send(DONE)


def main(directory: str) -> None:
    """Run as the child, with `directory` for temporary files."""
    sys.setrecursionlimit(RECURSION_MAX)
    # Frames get a descriptor of their own, so that nothing a library prints can get in between.
    channel = Channel(0, os.dup(1))
    os.dup2(2, 1)
    gate = Gate(directory)
    engine = open_engine(directory)
    # What a first statement loads is loaded ahead of it: 5 of its 12 ms.
    gate.read("SELECT 1")
    engine.sql("SELECT 1").to_arrow_reader().read_all()
    channel.send(HELLO, json.dumps(put_up_fences(directory)).encode())
    try:
        answer(channel, gate, engine, directory)
    except Refused as error:
        fail(channel, REFUSED, error)
    except (duckdb.Error, pa.ArrowException, OSError, MemoryError) as error:
        # Once rows flow, the engine's errors arrive through Arrow as OSError, with nothing but their text.
        fail(channel, LATE if str(error).startswith("INTERRUPT Error") else FAILED, error)
    os._exit(0)


def fail(channel: Channel, kind: str, error: BaseException) -> None:
    message = str(error).strip() or type(error).__name__
    channel.send(FAILURE, json.dumps({"kind": kind, "message": message[:MESSAGE_CHARS_MAX]}).encode())
