"""Human studies: people talk with blinded agents and rate them (`experiments/study.py`).

`questionnaire.py`, `assignment.py`, `store.py` and `session.py` are the study without HTTP: what is
asked, who gets which agent, what is kept, what may come next. `pages.py` serves it, `pilot.py` lets
simulated people take part, `analysis.py` and `report.py` say what came of it.
"""
