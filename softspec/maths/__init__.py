"""The mathematics: tensors in, tensors out. Needs torch and nothing else; no devices, files, logs or random state."""
