"""Tables from result files, and the tracking server's view of them."""
