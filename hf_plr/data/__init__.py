"""Data sets, folders, tables and archives as samples: what is read, decoded, kept and checked."""
