"""One module per verb: parse nothing, print nothing; call Azure and the guest, and return a result."""
