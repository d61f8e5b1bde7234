"""Edits of an exported program: batch norm folded, integers written, forms of other engines."""
