"""In vLLM's front-end process: requests become groups, and telemetry becomes a trace."""
