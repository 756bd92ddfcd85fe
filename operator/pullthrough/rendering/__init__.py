"""The objects of a cache as they should be: pure builders, one module per kind, dictionaries out."""
