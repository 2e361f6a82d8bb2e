"""`UserError`: the base class of every error that a user can mend.

Its message names the value, the place and the way out, so command lines show it without a
traceback. All three floors derive theirs from it. It needs nothing but Python.
"""


class UserError(Exception):
    """Bad input, or a limit that was reached; anything else that is raised is a bug of ours."""
