"""What an ensemble did not know, kept as rows that training reads."""
