"""A fourth task, added from outside the package: the direction that each visible surface faces."""
