"""Settings, without torch, so that the command line answers at once.

`schema` says what exists, `ranges` which values are allowed, `names` what a name stands for. `load` reads a recipe with
`tree` (YAML and overrides), `forms` (the user's form and the schema's), `relations` (what settings ask of one another)
and `explain` (messages). `densekd.build` turns names into objects.
"""
