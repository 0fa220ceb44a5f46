"""The frozen base and K adapters in it: how likely each member finds a completion."""
