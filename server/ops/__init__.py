"""Running it: settings, start, readiness, metrics, errors."""
