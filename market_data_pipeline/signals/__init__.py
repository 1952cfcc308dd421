"""How signals did afterwards, on stored bars."""
