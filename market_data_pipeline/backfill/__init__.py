"""Bars of months of files, made by many processes: docs/backfill.md."""
