"""Messages of the simulated devices: encodings, ledger, proof."""
