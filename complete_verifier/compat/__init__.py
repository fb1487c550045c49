"""What users' own modules expect to find (interface 9.8): `arguments`, `read_vnnlib`, `load_model`, and how they are
called. Those names can be imported only while a hook is loaded or runs."""
