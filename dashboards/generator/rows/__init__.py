"""The dashboard's rows from the top, each panel with the question that it answers."""
