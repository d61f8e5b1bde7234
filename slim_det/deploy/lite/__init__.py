"""Paddle-Lite: preparing programs for it, conversion, and running on x86."""
