"""WIDER FACE AP, from arrays, from files and inside an evaluation."""
