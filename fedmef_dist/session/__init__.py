"""A run from the outside, and what is done with finished ones."""
