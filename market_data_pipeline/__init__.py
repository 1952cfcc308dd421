"""Everything that moves: buses, producers, windows, consumers and the command line."""
