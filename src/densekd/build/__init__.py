"""The composition root: the only room that turns names (`densekd.config.names`) into objects.

Everything a setting can get wrong (a name, an option, a tap, a class count, a weights file) fails here, before the
first batch, with what was given, what is possible and the nearest match.
"""
