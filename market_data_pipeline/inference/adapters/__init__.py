"""What decides: rules, models, and whatever else is installed."""
