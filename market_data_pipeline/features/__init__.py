"""Rolling features of bars."""
