"""What a run tells while it goes on: log, curves, progress."""
