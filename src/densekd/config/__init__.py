"""Settings: `schema` says what exists, `load` reads YAML and overrides, `build` turns names into objects.

`schema` and `load` import no torch, so that the command line answers at once.
"""
