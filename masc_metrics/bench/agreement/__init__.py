"""How well scores agree with people: readers, statistics, protocols and their command."""
