"""What every room may use: errors, settings, randomness, safe files, notices."""
