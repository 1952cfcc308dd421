"""Contracts of mdp: events, bars, codecs, configuration, errors. No I/O and no drivers."""

__version__ = "0.4.0"
