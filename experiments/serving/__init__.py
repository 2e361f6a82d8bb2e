"""Agents that answer people and programs: `agents.py` loads them, `app.py` is their HTTP API.

    agents = load_agents(["runs/teaching:ilql", "world:teaching:optimum"])
    answer = await agents["ilql"].answer([Turn("human", "Hi!")], seed=0)

A conversation is its messages: nothing is kept between two answers but what networks have read.
"""
