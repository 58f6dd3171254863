"""Questions to the offline store: point-in-time joins and SQL."""
