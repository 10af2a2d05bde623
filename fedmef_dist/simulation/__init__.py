"""The loop, the server, accounting and forecast."""
