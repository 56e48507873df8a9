"""Which files a dataset has, wherever they are, and what their headers tell."""
