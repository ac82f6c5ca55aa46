"""What the gateway adds between a client and its provider, measured: `python -m tests.bench`."""
