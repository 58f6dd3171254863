"""Objects of users (query results, spines, uploads) below bucket names; see `buckets.protocol`."""
