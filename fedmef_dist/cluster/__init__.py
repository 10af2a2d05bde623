"""The ranks: how they were launched, meet, talk, watch each other and stop together."""
