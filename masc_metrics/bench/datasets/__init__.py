"""The paper's two benchmarks: their folders, and their commands."""
