"""What a command needs of several rooms. The command line calls one function each."""
