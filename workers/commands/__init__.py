"""The `fleet` command, a module for each noun; `workers/cli.py` puts them together."""
