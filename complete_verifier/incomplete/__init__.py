"""The incomplete stage: CROWN, then alpha-CROWN, over all clauses; proven clauses drop out."""
