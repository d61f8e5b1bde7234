"""The artifact: written, checked before it is published, run, and converted for Paddle-Lite."""
