"""`softspec bench train`: what a training step of K members costs, beside the other ways to train them."""
