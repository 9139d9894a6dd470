"""The command line: one small file a command. Parsing and --help import no torch."""
