"""Files that survive a crash: atomic writes, and transactions over several files."""
