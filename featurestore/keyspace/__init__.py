"""What online store and change log share on Redis: where the servers are, the keys and their bytes, the scripts."""
