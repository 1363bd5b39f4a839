"""What ``scripts/bench.py`` is made of: processes, peers, a store, runs and the report."""
