"""Files from elsewhere: URLs, S3, folders of the server, model hubs. All of it counts as hostile."""
