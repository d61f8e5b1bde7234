"""Paddle-Lite: the forms of a program that it reads, conversion, and running on x86."""
