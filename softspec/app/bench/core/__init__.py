"""What all benchmarks have in common: the document, its spreads, the machine, the table."""
