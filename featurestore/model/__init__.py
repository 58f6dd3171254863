"""The pure model: feature groups, values, event times, records, changes and their bytes. No I/O, no clock."""
