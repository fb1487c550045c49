"""The language of properties: variables, linear expressions, comparisons, and their normal form."""
