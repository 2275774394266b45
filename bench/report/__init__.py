"""What is made from rows: tables in the READMEs, plots, goals, and predictions where there are no rows."""
