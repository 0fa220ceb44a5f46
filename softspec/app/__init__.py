"""The roof: what people run. It may import everything; nothing imports it."""
