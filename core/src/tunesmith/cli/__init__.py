"""The command line, `tune`."""
