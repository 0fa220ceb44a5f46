"""An ensemble as a library: lists of prompts, answers and questions in, typed answers with their uncertainty out."""
