"""The bus: one contract, several drivers."""
