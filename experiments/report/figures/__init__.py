"""The figures of a run's report; `drawn.py` lists them."""
