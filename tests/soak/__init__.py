"""The soak: the promises of the service, measured over minutes of load with everything that happens on a bad day.

``python -m tests.soak`` runs it in full and writes a report with pictures; ``test_soak.py`` runs it shortened, and
looks at what is right and not at what is fast.
"""
