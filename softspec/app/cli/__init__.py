"""The command line, one file a command; `main` has the table of commands and the exit codes."""
