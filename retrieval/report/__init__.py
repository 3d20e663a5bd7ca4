"""Pages and pictures of measured values: the page of an audit and the contact sheet of a search."""
