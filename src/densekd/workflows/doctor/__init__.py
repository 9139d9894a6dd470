"""`doctor`: what would stop or spoil a run, found before it: a file for each area, and the sequence in `examine`."""
