"""Reconstruction: what layers compute on images, to choose channels and to repair layers."""
