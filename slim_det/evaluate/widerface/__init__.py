"""WIDER FACE AP, from arrays, from files and during an evaluation."""
