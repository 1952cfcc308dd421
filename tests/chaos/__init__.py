"""Chaos: everything is killed, stopped and cut off while events flow, and then every bar is recounted.

``python -m tests.chaos`` runs the scenarios of :mod:`tests.chaos.scenarios` in full; ``test_chaos.py`` runs them
shortened.
"""
