"""How RocksDB is opened: one column family per kind of record, and its bounds on memory and log.

Besides the kinds there are two families of the store's own: what it knows of itself, and the
commits it keeps for replicas.
"""

from pathlib import Path

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
)

from ganglion.broker.store import Kind

__all__ = ["FAMILIES", "FEED", "METADATA", "open_database"]

METADATA = "metadata"
FEED = "feed"
_MIB = 1024 * 1024

FAMILIES = {
    Kind.SESSION: "sessions",
    Kind.SUBSCRIPTION: "subscriptions",
    Kind.BACKLOG: "backlog",
    Kind.IN_FLIGHT: "in_flight",
    Kind.RECEIVED: "received",
    Kind.RETAINED: "retained",
    Kind.SETTLED: "settled",
    Kind.BACKLOG_STATE: "backlog_state",
    Kind.PAYLOAD: "payload",
    Kind.PAYLOAD_USES: "payload_uses",
    Kind.WILL: "will",
    Kind.QUEUE: "queue",
    Kind.RETURNED: "returned",
    Kind.DELAYED: "delayed",
    Kind.DEDUPLICATION: "deduplication",
    Kind.STREAM: "stream",
    Kind.STREAM_BATCH: "stream_batch",
    Kind.STREAM_KEY: "stream_key",
    Kind.STREAM_GROUP: "stream_group",
    Kind.PRODUCER: "producer",
}
assert len(FAMILIES) == len(Kind)
# Records that come and go with every message: what is deleted must not slow down a later scan.
_SHORT_LIVED = frozenset(
    (
        Kind.BACKLOG,
        Kind.IN_FLIGHT,
        Kind.RECEIVED,
        Kind.SETTLED,
        Kind.PAYLOAD,
        Kind.PAYLOAD_USES,
        Kind.RETURNED,
        Kind.DELAYED,
        Kind.DEDUPLICATION,
    )
)


def open_database(records: Path, recovery: DBRecoveryMode | None = None) -> Rdict:
    """Open the database with all column families that it has or should have."""
    recovery = DBRecoveryMode.tolerate_corrupted_tail_records() if recovery is None else recovery
    cache = Cache(8 * _MIB)
    names = {METADATA, FEED, *FAMILIES.values()}
    if (records / "CURRENT").exists():
        names |= set(Rdict.list_cf(str(records))) - {"default"}
    short_lived = {FAMILIES[kind] for kind in _SHORT_LIVED}
    options = _options(cache, recovery, is_short_lived=False)
    families = {
        name: _options(cache, recovery, is_short_lived=name in short_lived) for name in names
    }
    return Rdict(str(records), options, families)


def _options(cache: Cache, recovery: DBRecoveryMode, *, is_short_lived: bool) -> Options:
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    options.set_wal_recovery_mode(recovery)
    options.set_paranoid_checks(True)
    # Messages are compressed already, or small: it would cost the storage thread's processor time.
    options.set_compression_type(DBCompressionType.none())
    # Memory: what is not yet in a sorted file, over all kinds, and blocks that were read.
    options.set_write_buffer_size(8 * _MIB)
    options.set_db_write_buffer_size(24 * _MIB)
    table = BlockBasedOptions()
    table.set_block_cache(cache)
    options.set_block_based_table_factory(table)
    options.set_max_open_files(256)
    # How much log there is bounds how long a start after a crash takes.
    options.set_max_total_wal_size(64 * _MIB)
    options.set_bytes_per_sync(_MIB)  # sorted files reach the disk evenly, not all at once
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(_MIB)
    options.set_max_manifest_file_size(4 * _MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    if is_short_lived:
        options.add_compact_on_deletion_collector_factory(8192, 4096, 0.5)
    return options
