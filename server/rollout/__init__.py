"""A new ensemble beside the old one: aliases that stand for either, and shadows that are asked and not heard."""
