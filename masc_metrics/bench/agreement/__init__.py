"""Agreement of scores with people: readers, statistics, protocols, and the command."""
