"""The quickstart: its files are what they say, without asking the verifier."""
