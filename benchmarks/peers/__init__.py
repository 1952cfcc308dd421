"""mdp beside its peers, in one run: the same ticks of one Kafka topic to the same bars in the same PostgreSQL.

``python -m benchmarks.peers``; docs/performance.md says what is measured, and how. Each peer is a program of its own,
``with_NAME.py``, written as its documentation would, in an environment of its own with what ``NAME.lock`` pins. To
choose versions anew: ``uv pip compile NAME.in --universal --python-version 3.11 --generate-hashes --no-header
--no-emit-index-url --no-emit-find-links --upgrade --output-file NAME.lock``.
"""
