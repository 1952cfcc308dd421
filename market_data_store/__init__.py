"""The database of mdp: the only package that knows SQL, tables and migrations."""

from market_data_store.client import StoreClient
from market_data_store.job_runs import JobRunTracker
from market_data_store.signals import SignalsStoreClient

__all__ = ["JobRunTracker", "SignalsStoreClient", "StoreClient"]
