"""Two models of a running server side by side: what their metrics say, and whether that is more than chance."""
