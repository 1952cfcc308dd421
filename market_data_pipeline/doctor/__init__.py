"""What is wrong with the services and this machine, and how to put it right: what ``mdp doctor`` prints."""

from market_data_pipeline.doctor.finding import Finding, State

__all__ = ["Finding", "State"]
