"""Plans trainings on machines that need not be there: `python -m ilql_jax.plan --help`.

__main__.py   the command line
chips.py      peak figures of chips, slices of TPUs
compile.py    the train step, compiled ahead of time: memory, work, largest batch
hlo.py        traffic of a compiled program, read from XLA's text
text.py       the plan, printed
"""
