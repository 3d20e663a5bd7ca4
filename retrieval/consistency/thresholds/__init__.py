"""The threshold for a stated target, its uncertainty, its certificate, and what moves it."""
