"""Networks of other libraries under short names. A library is imported when its network is built, and not before."""
