"""How the global model does, on the test set and on clients' own data."""
