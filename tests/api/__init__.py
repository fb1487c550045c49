"""The public library interface: what users import, and the promises that every bound method keeps through it."""
