"""Prompted speakers: asking and prompts (see `imagination.agents`)."""
