"""Grafana dashboards and Prometheus rules of mdp.

``python -m grafana`` writes the dashboards, ``python -m grafana.preview`` shows them without a Grafana.
"""
