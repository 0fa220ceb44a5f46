"""What is routed to whom, and the loss that does it."""
