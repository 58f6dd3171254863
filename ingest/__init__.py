"""Workers that move data: the offline writer."""
