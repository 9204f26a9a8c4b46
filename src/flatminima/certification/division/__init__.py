"""The samples of a certificate: read, divided, and searched for what repeats."""
