"""Running the server: settings, start, readiness, metrics, errors."""
