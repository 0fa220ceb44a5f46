"""The training benchmark: a step of K members beside other ways to it."""
