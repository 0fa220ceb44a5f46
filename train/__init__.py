"""Training: rows in, an ensemble directory out. Imports `softspec`, never `server`."""
