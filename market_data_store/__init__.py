"""The only package that knows SQL, tables and migrations."""
