"""Branch and bound over sub-problems (domains): store, branching, bounding and the loop, each apart."""
