"""The published data sets: what is known of them, how their releases are read, prepared and verified.

A release is what the authors of a data set hand out; `prepare` makes of it a client in the processed layout that
`fedmpi.reid.layouts` reads. Nothing is downloaded. Import the modules themselves.
"""
