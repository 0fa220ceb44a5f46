"""Who may ask, and how much: API keys, what a key may spend, how large one request may be, and how long one waits."""
