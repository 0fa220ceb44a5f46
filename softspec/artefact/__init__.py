"""The artefact: an ensemble directory and the base it belongs to, as files. Loads no models."""
