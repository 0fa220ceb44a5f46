"""The demo: an ensemble trained, served and asked on contradictory sources that it invents."""
