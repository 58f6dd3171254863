"""Workers that move data and look after it: relay, offline writer, maintenance."""
