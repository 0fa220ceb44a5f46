"""What is done about uncertainty: answer, abstain, route."""
