"""From features to signals."""
