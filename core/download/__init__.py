"""Downloads: the manifest, the hubs, and files on their way to the models folder."""
