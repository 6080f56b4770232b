"""The model: loading, log-probs, reference, optimizer. Import from the modules: nothing is re-exported here."""
