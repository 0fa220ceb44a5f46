"""The artefact: an ensemble directory and the base it belongs to, as files, and how files are read. Loads no models."""
