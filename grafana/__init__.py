"""Grafana dashboards and Prometheus rules of mdp; ``python -m grafana`` writes the dashboards."""
