"""Pictures and captions of a folder => the tables that the pipeline starts from."""
