"""Nothing for Python: compiled callers take it from the .pxd."""
