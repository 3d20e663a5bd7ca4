"""Measured values become pages and pictures: the page of an audit and the contact sheet of a search."""
