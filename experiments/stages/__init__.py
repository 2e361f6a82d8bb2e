"""The stages of a run, a file each: imagine, regenerate, train, evaluate, report; chat, export.

No stage imports another; what several of them need is one folder up.
"""
