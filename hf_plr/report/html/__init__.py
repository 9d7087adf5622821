"""`report.html`: one file that shows what a run did, and the data that it is rendered from."""
