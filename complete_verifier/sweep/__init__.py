"""Many instances: handing them out, a process for each, and knowing which results still hold."""
