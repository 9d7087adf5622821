"""What a run leaves to look at and to go on with: pages, tables, names, audits and the tree of clusters."""
