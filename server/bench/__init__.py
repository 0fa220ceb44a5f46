"""`softspec bench`: what serving an ensemble costs, beside the other ways to the same answers."""
